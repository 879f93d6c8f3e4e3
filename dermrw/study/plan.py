"""What the study consists of: tables of rows, rows of runs. Read from configs/study/study.yaml."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dermrw.config import CONFIGS, Config, differences, load_config
from dermrw.errors import UserError

STUDY = CONFIGS / "study" / "study.yaml"
RESULTS = Path("docs/study")  # from the root of a checkout: a folder a budget
# where a run happens and how fast, not what it gives
PLACE = {"data.root", "model.weights", "train.checkpoint_seconds", "data.workers", "train.device", "name"}


def settings_of(config: Config) -> list[str]:
    """What a config changes in the defaults, as far as it changes what a run gives: `train.epochs: 5, was 30`."""
    return [line for line in differences(config, Config()) if line.partition(":")[0] not in PLACE]


class Budget(BaseModel):
    """What a run may cost: how many seeds, and what is set in every run on each data set."""

    model_config = ConfigDict(extra="forbid")
    seeds: int
    ham: dict[str, Any]
    cifar: dict[str, Any]


class Table(BaseModel):
    """Rows, each under each condition, and the row that the others are compared with."""

    model_config = ConfigDict(extra="forbid")
    title: str
    text: str  # what is asked, and how to read it
    against: str
    rows: list[str]
    under: dict[str, dict[str, Any]] = {"clean": {}}


class Run(NamedTuple):
    """One training with one seed."""

    budget: str
    row: str  # its name, such as ham_reweight_uniform20
    config: str  # the config file's stem
    condition: str
    settings: dict[str, Any]  # key=value beside the config file
    seed: int

    @property
    def name(self) -> str:
        """`ROW-SEED`."""
        return f"{self.row}-{self.seed}"

    def overrides(self, *more: str) -> list[str]:
        """What the command line takes beside the config file."""
        own = [
            f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in self.settings.items()
        ]
        return [*own, f"train.seed={self.seed}", *more]

    def load(self, *more: str) -> Config:
        """The whole config."""
        return load_config(CONFIGS / "study" / f"{self.config}.yaml", self.overrides(*more))

    def digest(self) -> str:
        """Of `settings_of` the config alone, so a key that dermrw learns later outdates no result.

        Nor would a change of a default: docs/study/defaults.json holds those of the results, and a test compares.
        """
        return hashlib.sha256("\n".join(sorted(settings_of(self.load()))).encode()).hexdigest()[:16]


class Plan(BaseModel):
    """The whole study."""

    model_config = ConfigDict(extra="forbid")
    budgets: dict[str, Budget]
    tables: dict[str, Table]

    def runs(self, budget: str, tables: list[str] | None = None) -> list[Run]:
        """Every run of a budget, first seeds first, each once."""
        found: dict[str, Run] = {}
        for seed in range(self.budgets[budget].seeds):
            for name, table in self.tables.items():
                if tables is None or name in tables:
                    found.update({run.name: run for run in self.runs_of(budget, table, seed) if run.name not in found})
        return list(found.values())

    def runs_of(self, budget: str, table: Table, seed: int) -> list[Run]:
        """A table's runs of one seed."""
        both = {"ham": self.budgets[budget].ham, "cifar": self.budgets[budget].cifar}
        return [
            Run(
                budget,
                row if not settings else f"{row}_{condition}",
                row,
                condition,
                {
                    **both[row.partition("_")[0]],
                    **{k: v.format(seed=seed) if isinstance(v, str) else v for k, v in settings.items()},
                },
                seed,
            )
            for condition, settings in table.under.items()
            for row in table.rows
        ]


def read_plan(path: Path = STUDY) -> Plan:
    """The study.

    Raises:
        UserError: the file is not one.
    """
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path} is not a study: {' '.join(str(error).split())[:300]}") from None
