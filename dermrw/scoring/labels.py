"""From the labels of a user's table to the classes of a model, or to malignant and benign."""

import os
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

from dermrw.csv_table import read_csv_table
from dermrw.errors import UserError
from dermrw.inference.model_file import ModelInfo
from dermrw.labelled.names import codes_by_name
from dermrw.published import BENIGN as BENIGN_LABEL
from dermrw.published import MALIGNANT as MALIGNANT_LABEL
from dermrw.published import OTHER_CODES, PublishedSet, fold

TRUE, FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
LEFT_OUT = ""  # target of a label that is not scored
NO_LABEL = "no label"
MOST_LABELS = 12  # named in an error


class Truth(NamedTuple):
    """The truth of N images."""

    targets: list[str]  # [N]: a code of the model, or malignant and benign; `LEFT_OUT` for images that are not scored
    binary: bool  # whether the targets are malignant and benign
    left_out: dict[str, int]  # images that are not scored, by label
    notes: list[str]


def class_names(info: ModelInfo) -> dict[str, str]:
    """Returns the code of each folded code, column, display name and synonym."""
    return codes_by_name(info.classes)


def read_map(maps: Sequence[str], info: ModelInfo) -> dict[str, str]:
    """Returns the target of each folded label of all values of `--map` together.

    Args:
        maps: each is a CSV file with the columns `label` and `code`, or items such as
            `mel=melanoma,nv=nevus|naevus,SCC=`. A label without a code is left out.
        info: the model's metadata.

    Raises:
        UserError: the file cannot be read, an item names no class, or a label has two classes.
    """
    targets = {name: name for name in (MALIGNANT_LABEL, BENIGN_LABEL)} | class_names(info)
    mapped: dict[str, str] = {}
    for label, name in (pair for text in maps for pair in _pairs(text, targets)):
        target = targets.get(fold(name)) if name else LEFT_OUT
        if target is None:
            raise UserError(
                f"--map gives the label {label} the class {name}, which the model does not have: "
                f"use one of {', '.join(info.codes)}, or leave the label out with {label}="
            )
        if mapped.setdefault(fold(label), target) != target:
            raise UserError(f"--map gives the label {label} two classes: keep one")
    return mapped


def _pairs(text: str, targets: Container[str]) -> list[tuple[str, str]]:
    """The pairs of label and class of one `--map`."""
    if "=" not in text or os.path.isfile(text):  # noqa: PTH113 Path.is_file raises if the text is too long for a name
        return _pairs_of_file(Path(text))
    pairs: list[tuple[str, str]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        left, equals, right = (part.strip() for part in item.partition("="))
        if not equals or not left:
            raise UserError(f"--map {item}: write CODE=LABEL, CODE=LABEL|LABEL, or LABEL= to leave a label out")
        if fold(left) in targets and right:
            pairs += [(label.strip(), left) for label in right.split("|")]
        else:
            pairs.append((left, right))
    return pairs


def _pairs_of_file(path: Path) -> list[tuple[str, str]]:
    table = read_csv_table(path)
    position = {name.casefold(): i for i, name in enumerate(table.columns)}
    code = next((position[name] for name in ("code", "class", "dx") if name in position), None)
    if "label" not in position or code is None:
        raise UserError(f"{path} must have the columns label and code, or write --map mel=melanoma,nv=nevus|naevus")
    return [(row[position["label"]], row[code]) for row in table.rows if row[position["label"]]]


def find_truth(
    labels: Sequence[str],
    info: ModelInfo,
    mapped: dict[str, str],
    binary: bool = False,
    published: PublishedSet | None = None,
) -> Truth:
    """Returns the truth of the images with these labels.

    Args:
        labels: as in the table `[N]`; images without a label are left out.
        info: the model's metadata.
        mapped: the result of `read_map`.
        binary: whether 1 and 0 mean malignant and benign, and classes count as malignant or benign.
        published: the published set of the table. Its labels without a class, such as SCC and UNK, are left out.

    Raises:
        UserError: a label is unknown, classes are mixed with malignant and benign, or no image can be scored.
    """
    own = class_names(info)
    names = {name: name for name in (MALIGNANT_LABEL, BENIGN_LABEL)} | own
    if binary:
        names |= dict.fromkeys(TRUE, MALIGNANT_LABEL) | dict.fromkeys(FALSE, BENIGN_LABEL)
    counts = Counter(labels)
    if published:
        codes = {*info.codes, MALIGNANT_LABEL, BENIGN_LABEL}
        known = {**OTHER_CODES, **published.codes}
        names |= {name: code for name, code in known.items() if code in codes and name not in own}
        names = dict.fromkeys(map(fold, counts), LEFT_OUT) | names
    names |= mapped | {"": LEFT_OUT}
    present = {fold(label) for label in counts}
    unused = [label for label in mapped if label not in present]
    notes = [f"--map names labels that the table does not have: {', '.join(unused)}"] if unused else []
    hint = "".join(f" ({note}; write the class first, as in CODE=LABEL)" for note in notes)
    unknown = {label: n for label, n in counts.most_common() if fold(label) not in names}
    if unknown:
        raise UserError(_unknown(unknown, info) + hint)
    targets = [names[fold(label)] for label in labels]
    used = set(targets) - {LEFT_OUT}
    two = (used & {MALIGNANT_LABEL, BENIGN_LABEL}) - set(info.codes)
    if not used:
        raise UserError("no image has a label that is scored: check --map")
    if two and used - two and not binary:
        raise UserError(
            f"the labels are classes ({', '.join(sorted(used - two))}) and {' and '.join(sorted(two))}: score "
            f"malignant against benign with --binary, or leave labels out with --map {sorted(two)[0]}={hint}"
        )
    if binary or two:
        if info.malignant is None or len(set(info.malignant)) < 2:
            raise UserError(
                "the model does not state malignant and benign classes, so malignant and benign labels can't be scored"
            )
        malignant = {code for code, bad in zip(info.codes, info.malignant, strict=True) if bad}
        targets = [_binary_target(target, malignant) for target in targets]
    left_out = Counter(label or NO_LABEL for label, target in zip(labels, targets, strict=True) if not target)
    return Truth(targets, bool(binary or two), dict(left_out.most_common()), notes)


def _binary_target(target: str, malignant: set[str]) -> str:
    if target in (LEFT_OUT, MALIGNANT_LABEL, BENIGN_LABEL):
        return target
    return MALIGNANT_LABEL if target in malignant else BENIGN_LABEL


def _unknown(unknown: dict[str, int], info: ModelInfo) -> str:
    listed = ", ".join(f"{label} ({n:,})" for label, n in list(unknown.items())[:MOST_LABELS])
    more = f" and {len(unknown) - MOST_LABELS:,} more" if len(unknown) > MOST_LABELS else ""
    if all(label in TRUE + FALSE for label in unknown):
        return f"the labels are {listed}: add --binary if they mean malignant and benign"
    examples = list(unknown)[:3]
    return (
        f"labels that are no classes of the model ({', '.join(info.codes)}): {listed}{more}. Give each a class with "
        f'--map "{info.codes[0]}={"|".join(examples)}", or leave them out with '
        f'--map "{",".join(f"{label}=" for label in examples)}"'
    )
