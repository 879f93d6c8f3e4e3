"""The plan of the study: tables of rows, rows of runs. Read from configs/study/study.yaml."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dermrw.config import CONFIGS, Config, load_config, settings_of
from dermrw.errors import UserError

STUDY = CONFIGS / "study" / "study.yaml"
RESULTS = Path("docs/study")  # from the root of a checkout: one folder for each budget


class Budget(BaseModel):
    """The size of the study: the number of seeds, and the settings of every run on each data set."""

    model_config = ConfigDict(extra="forbid")
    seeds: int
    ham: dict[str, Any]
    cifar: dict[str, Any]
    tables: list[str] | None = None  # None: all
    rows: list[str] | None = None  # of these tables; None: all
    conditions: list[str] | None = None  # of these tables, in this order; None: all
    minutes: str = "one core, which was shared with other work at times"  # what the training times are those of
    bench: bool = True  # whether the report has the table of the weights' cost


class Table(BaseModel):
    """Rows, each under each condition, and the row that the others are compared with."""

    model_config = ConfigDict(extra="forbid")
    title: str
    text: str  # the question, and how to read the table
    findings: dict[str, str] = {}  # by budget: what its results show
    against: str
    rows: list[str]
    under: dict[str, dict[str, Any]] = {"clean": {}}


class Method(BaseModel):
    """A method, and the settings in which it differs from the other methods on its data set."""

    model_config = ConfigDict(extra="forbid")
    text: str  # one line
    reference: str = ""
    set: dict[str, Any]


class Run(NamedTuple):
    """One training with one seed."""

    budget: str
    row: str  # its name, such as ham_reweight_uniform20
    method: str  # its key in `Plan.methods`
    condition: str
    method_settings: dict[str, Any]  # key=value of the data set and the method
    settings: dict[str, Any]  # key=value of the budget and the condition; they override those of the method
    seed: int

    @property
    def name(self) -> str:
        """`ROW-SEED`."""
        return f"{self.row}-{self.seed}"

    def overrides(self, *more: str) -> list[str]:
        """Returns the settings of the budget, the condition and the seed as `key=value`, then `more`."""
        return [*_as_overrides(self.settings), f"train.seed={self.seed}", *more]

    def load(self, *more: str) -> Config:
        """Returns the complete config."""
        return load_config(None, [f"name={self.method}", *_as_overrides(self.method_settings), *self.overrides(*more)])

    def digest(self) -> str:
        """Returns a digest of `settings_of` the config, so that a new config key does not outdate a result.

        A changed default would not change the digest either: a test compares the defaults with those of the results,
        docs/study/defaults.json.
        """
        return hashlib.sha256("\n".join(sorted(settings_of(self.load()))).encode()).hexdigest()[:16]


class Plan(BaseModel):
    """The whole study."""

    model_config = ConfigDict(extra="forbid")
    budgets: dict[str, Budget]
    base: dict[str, dict[str, Any]]  # by data set
    methods: dict[str, Method]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _known_methods(self) -> "Plan":
        for name, table in self.tables.items():
            for row in table.rows:
                if row not in self.methods or row.partition("_")[0] not in self.base:
                    raise ValueError(
                        f"table {name} names {row}, which is not in methods or whose data set is not in base"
                    )
        return self

    @model_validator(mode="after")
    def _known_conditions(self) -> "Plan":
        for name, budget in self.budgets.items():
            known = {condition for table in self.tables_of(name).values() for condition in table.under}
            for condition in budget.conditions or []:
                if condition not in known:
                    raise ValueError(f"budget {name} names the condition {condition}, which none of its tables has")
        return self

    def runs(self, budget: str, tables: list[str] | None = None) -> list[Run]:
        """Returns every run of a budget once, ordered by seed."""
        by_name: dict[str, Run] = {}
        for seed in range(self.budgets[budget].seeds):
            for name, table in self.tables_of(budget).items():
                if tables is None or name in tables:
                    by_name.update({r.name: r for r in self.runs_of(budget, table, seed) if r.name not in by_name})
        return list(by_name.values())

    def tables_of(self, budget: str) -> dict[str, Table]:
        """Returns the tables of a budget."""
        chosen = self.budgets[budget].tables
        return {name: table for name, table in self.tables.items() if chosen is None or name in chosen}

    def rows_of(self, budget: str, table: Table) -> list[str]:
        """Returns the methods of a table that a budget trains."""
        rows = self.budgets[budget].rows
        return [name for name in table.rows if rows is None or name in rows]

    def conditions_of(self, budget: str, table: Table) -> list[str]:
        """Returns the conditions of a table under which a budget trains."""
        conditions = self.budgets[budget].conditions
        return list(table.under) if conditions is None else [name for name in conditions if name in table.under]

    def runs_of(self, budget: str, table: Table, seed: int) -> list[Run]:
        """Returns a table's runs of one seed."""
        by_data_set = {"ham": self.budgets[budget].ham, "cifar": self.budgets[budget].cifar}
        runs = []
        for condition in self.conditions_of(budget, table):
            settings = table.under[condition]
            own = {k: v.format(seed=seed) if isinstance(v, str) else v for k, v in settings.items()}
            for name in self.rows_of(budget, table):
                data_set = name.partition("_")[0]
                runs.append(
                    Run(
                        budget=budget,
                        row=f"{name}_{condition}" if settings else name,
                        method=name,
                        condition=condition,
                        method_settings={**self.base[data_set], **self.methods[name].set},
                        settings={**by_data_set[data_set], **own},
                        seed=seed,
                    )
                )
        return runs


def _as_overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in settings.items()]


def read_plan(path: Path = STUDY) -> Plan:
    """Reads the study.

    Raises:
        UserError: the file is not a study.
    """
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path} is not a valid study: {' '.join(str(error).split())[:300]}") from None
