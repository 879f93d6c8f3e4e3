"""Renders MODEL_CARD.md from a run's report (Mitchell et al., Model Cards for Model Reporting, FAT* 2019)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dermrw.config import NOT_PART_OF_A_RESULT, Config, with_views, without_folders
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.formatting import percent, threshold
from dermrw.inference.model_file import ModelInfo
from dermrw.reports.report_schema import DefinedReport, Report
from dermrw.reports.report_text import FAIR_SKIN, SKIN_TONE, report_unit

from .foreign_pictures import LIKENESSES


def _range(ends: tuple[float | None, float | None]) -> str:
    low, high = ends
    return "–" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def _part(part: Any) -> str:
    """Returns a proportion with its confidence interval as text."""
    return "–" if part is None else f"{percent(part.share)} ({_range(part.interval_95)})"


def _markdown(text: str) -> str:
    """Returns a text with Markdown's and HTML's marks escaped."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _malignant_names(info: ModelInfo) -> str:
    """Returns the malignant classes, such as `melanoma, basal cell carcinoma and actinic keratosis`."""
    if info.codes == DX and info.malignant == HAM_CLASSES.malignant:
        return "melanoma, basal cell carcinoma and actinic keratosis"
    names = [_markdown(name) for name, bad in zip(info.names, info.malignant or (), strict=False) if bad]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def recipe(config: Config) -> str:
    """Returns the run's config as YAML: only values that differ from the defaults, without paths of the machine.

    Of files, such as that of the weights, the name remains.
    """
    kept: dict[str, Any] = {}
    before = Config().model_dump(mode="json")
    for section, part in without_folders(config).model_dump(mode="json").items():
        for key, value in part.items() if isinstance(part, dict) else ():
            if value != before[section][key] and f"{section}.{key}" not in NOT_PART_OF_A_RESULT:
                kept.setdefault(section, {})[key] = Path(value).name if key in ("classes", "meta", "reserve") else value
    if (weights := config.model.weights_file) is not None:
        kept.setdefault("model", {})["weights"] = weights.name
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=200).strip()


def model_card(
    report: DefinedReport,
    info: ModelInfo,
    file_digest: str,
    config: Config,
    doubt: dict[str, Any] | None = None,
    official: Sequence[DefinedReport] = (),
    scores: Mapping[str, Report] = MappingProxyType({}),
) -> str:
    """Returns the text of the card.

    Args:
        report: the report of the run.
        info: the model file's metadata.
        file_digest: SHA-256 of the model file.
        config: the config of the run.
        doubt: the results of `export.stress_test`, or None if it has not run.
        official: the report of the same checkpoint on ISIC 2018's official sets.
        scores: reports of `dermrw score` on images of other sources, by the name to show.
    """
    if report.views is not None:  # an evaluation can have other views than the config
        config = with_views(config, report.views)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, threshold=threshold, range=_range, part=_part, md=_markdown)
    template = environment.get_template("card.md.jinja")
    unit = report_unit(report)
    text = template.render(
        report=report, info=info, digest=file_digest, recipe=recipe(config), doubt=doubt, official=official,
        first_weights=config.model.weights_file is not None,
        scores=scores,
        likenesses=LIKENESSES, ham=config.data.name in ("ham10000", "sample"), dermatology=info.codes == DX,
        unit=unit, grouped=unit != "images", diagnoses="diagnoses" if info.codes == DX else "classes",
        malignant=_malignant_names(info), skin_tone=SKIN_TONE, fair_skin=FAIR_SKIN,
    )  # fmt: skip
    return text.rstrip() + "\n"
