"""The classes of a user's labelled images, from the labels or a YAML file, and those of a run, in its folder."""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dermrw.diagnoses import DX, HAM_CLASSES, Classes
from dermrw.errors import UserError
from dermrw.labelled.labelled_images import LABEL_COLUMNS, normal_label
from dermrw.published import BENIGN, MALIGNANT, OTHER_CODES, OTHER_NAMES, PublishedSet, fold, states_malignancy
from dermrw.strict_yaml import read_yaml_value

MOST_CLASSES = 100
MOST_CHARACTERS = 100  # of a code
CLASS_FILE = "classes.yaml"
OTHERS = "others"  # value of leave_out: every label that the file does not name
NO_LABEL = "no label"
MOST_NAMES = 5  # in an error
# a column of predictions.csv, or the first characters of a formula in a spreadsheet
RESERVED, FORMULA = ("image",), ("=", "+", "-", "@")
JOINERS = "\u200c\u200d"  # some scripts need these two format characters
KEYS = {"code", "name", "malignant", "labels"}


class ClassFile(NamedTuple):
    """The classes that a user's YAML file declares."""

    path: Path
    classes: Classes
    code_of: dict[str, str]  # by folded label
    leave_out: frozenset[str] | None  # folded labels; None: all that no class names


class Assigned(NamedTuple):
    """The classes of N labelled images."""

    classes: Classes
    codes: list[str]  # [N]; empty for images without a class
    left_out: dict[str, int]  # images without a class, by label


class RunClasses(NamedTuple):
    """The content of classes.yaml in a run folder."""

    classes: Classes
    unit: str  # of the split and of resampling: images, groups, patients or lesions
    notes: tuple[str, ...] = ()  # sentences on the data for reports and the model card


def assign_classes(
    labels: Sequence[str], source: Path, declared: ClassFile | None = None, published: PublishedSet | None = None
) -> Assigned:
    """Returns the classes and the class of each image.

    Classes that no file declares are the labels, in sorted order. A published set's labels that have a class of
    HAM10000 take its code, and those of squamous cell carcinoma take `scc`. Its labels for "unknown" have no class.

    Args:
        labels: as the user names them `[N]`; empty: no label.
        source: the table or folder, for messages.
        declared: the user's class file.
        published: the published set that the table belongs to.

    Raises:
        UserError: labels are unknown or ambiguous, or there are fewer than 2 or more than 100 classes.
    """
    counts = Counter(labels)
    known = {**OTHER_CODES, **published.codes} if published else {}
    code_of = {label: known.get(fold(label), "") for label in counts}
    if declared:
        code_of = _declared_codes(counts, code_of, declared, source)
        classes = declared.classes
    else:
        code_of = {label: code or _own_name(label, published) for label, code in code_of.items()}
        classes = _classes_of(set(code_of.values()) - {""}, published, source)
    codes = [code_of[label] for label in labels]
    left_out = Counter(label or NO_LABEL for label, code in zip(labels, codes, strict=True) if not code)
    present = set(codes) - {""}
    if len(present) < 2:
        listed = f"images of one class, {present.pop()}" if present else "no image with a class"
        raise UserError(f"{source} has {listed}: a classifier needs at least two classes")
    absent = [code for code in classes.codes if code not in present]
    if absent and declared:
        raise UserError(
            f"{source} has no image of {', '.join(absent[:MOST_NAMES])}, which {declared.path} declares: remove the "
            "class, or list its labels with labels: […]"
        )
    return Assigned(classes, codes, dict(left_out.most_common()))


def _own_name(label: str, published: PublishedSet | None) -> str:
    without_class = {"unk", "unknown", "indeterminate"}
    if published and set(published.codes.values()) - {BENIGN, MALIGNANT}:  # it has diagnoses: these two are none
        without_class |= {"benign", "malignant"}
    return "" if published and fold(label) in without_class else label


def _declared_codes(counts: Counter[str], known: dict[str, str], declared: ClassFile, source: Path) -> dict[str, str]:
    """The code of each label by the class file; empty for labels that it leaves out."""
    codes, unknown = {}, {}
    for label, n in counts.most_common():
        code = declared.code_of.get(fold(label)) or (known[label] if known[label] in declared.classes.codes else "")
        codes[label] = code
        if not code and label and declared.leave_out is not None and fold(label) not in declared.leave_out:
            unknown[label] = n
    if unknown:
        listed = ", ".join(f"{label} ({n:,})" for label, n in list(unknown.items())[:MOST_NAMES])
        more = f" and {len(unknown) - MOST_NAMES:,} more" if len(unknown) > MOST_NAMES else ""
        raise UserError(
            f"{source} has labels that {declared.path} does not name: {listed}{more}. Add them to the labels of a "
            f"class, or leave them out with leave_out: [{next(iter(unknown))}] or leave_out: {OTHERS}"
        )
    return codes


def _classes_of(codes: set[str], published: PublishedSet | None, source: Path) -> Classes:
    """The classes with these codes; malignant ones are known for HAM10000's codes and for malignant and benign."""
    if len(codes) > MOST_CLASSES:
        fix = "" if source.is_dir() else f"give the column that holds the classes the name {LABEL_COLUMNS[0]}, or "
        raise UserError(
            f"{source} has {len(codes):,} different labels, more than {MOST_CLASSES} classes: {fix}group the labels in "
            f"{CLASS_FILE}"
        )
    spelled: dict[str, str] = {}
    for code in sorted(codes):
        fault = code_fault(code)
        if fault:
            raise UserError(
                f"{source}: the label {code!r} can't be the code of a class, because it {fault}: rename it, or declare "
                f'a code for it in {CLASS_FILE}: {{code: NAME, labels: ["{code}"]}}'
            )
        other = spelled.setdefault(fold(code), code)
        if other != code:
            raise UserError(
                f"{source}: the labels {other!r} and {code!r} differ only in case, spaces or hyphens: use one of them "
                f"in all rows, or declare one class for both in {CLASS_FILE}"
            )
    if codes <= set(DX):
        return _some_of_ham(codes)
    order = tuple(sorted(codes))
    bad = dict(zip(DX, HAM_CLASSES.malignant or (), strict=True))
    if {fold(code) for code in codes} == {MALIGNANT, BENIGN}:
        return Classes(order, order, order, tuple(fold(code) == MALIGNANT for code in order))
    if not published and not codes <= {*DX, MALIGNANT, BENIGN}:
        return Classes(order, order, order, None)
    names = dict(zip(DX, HAM_CLASSES.names, strict=True)) | (OTHER_NAMES if published else {})
    stated = [bad.get(code, states_malignancy(code)) for code in order]
    malignant = None if None in stated else tuple(bool(value) for value in stated)
    return Classes(order, order, tuple(names.get(code, code) for code in order), malignant)


def _some_of_ham(codes: set[str]) -> Classes:
    rows = [i for i, code in enumerate(DX) if code in codes]
    malignant = HAM_CLASSES.malignant or ()
    return Classes(*(tuple(part[i] for i in rows) for part in (*HAM_CLASSES[:3], malignant)))  # type: ignore[arg-type]


def code_fault(code: str) -> str | None:
    """Returns why a text can't be the code of a class in CSV files, or None if it can."""
    if not code.strip():
        return "is empty"
    if len(code) > MOST_CHARACTERS:
        return f"has more than {MOST_CHARACTERS} characters"
    if any(_is_unsafe(character) for character in code):
        return "holds control characters or invisible marks"
    if code.startswith(FORMULA):
        return "starts as a formula of a spreadsheet does"
    if fold(code) in RESERVED:
        return "is the name of another column of predictions.csv"
    return None


def _is_unsafe(character: str) -> bool:
    return character not in JOINERS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def read_class_file(path: Path) -> ClassFile:
    """Reads the classes that a user declares: `classes: […]` and optionally `leave_out: […]`, or a plain list.

    Raises:
        UserError: the file can't be read, or it is wrong.
    """
    value = read_yaml_value(path, "class file", "correct data.classes, or leave it out")
    if isinstance(value, list):
        value = {"classes": value}
    if not isinstance(value, dict) or "classes" not in value:
        raise UserError(f"{path} must contain a list of classes, such as classes: [{{code: mel, name: melanoma}}, …]")
    unknown = set(value) - {"classes", "leave_out", "unit", "notes"}  # the last two: classes.yaml of a run
    if unknown:
        raise UserError(f"{path} has the key {sorted(unknown)[0]!r}; known are classes and leave_out")
    classes, code_of = _declared(path, value["classes"])
    given = value.get("leave_out", [])
    if given == OTHERS:
        return ClassFile(path, classes, code_of, None)
    if not isinstance(given, list) or not all(isinstance(label, str) for label in given):
        raise UserError(f"{path}: leave_out must be a list of labels in quotes, or {OTHERS}")
    leave_out = frozenset(fold(normal_label(label)) for label in given)
    both = [label for label in given if fold(normal_label(label)) in code_of]
    if both:
        raise UserError(f"{path}: the label {both[0]!r} is of a class and in leave_out: remove one")
    return ClassFile(path, classes, code_of, leave_out)


def _declared(path: Path, items: Any) -> tuple[Classes, dict[str, str]]:
    """The classes of a list in a class file, and the code of each folded label."""
    if not isinstance(items, list) or not 2 <= len(items) <= MOST_CLASSES:
        raise UserError(f"{path}: classes must be a list of 2 to {MOST_CLASSES} classes")
    rows = [_one_class(path, i + 1, item) for i, item in enumerate(items)]
    code_of: dict[str, str] = {}
    for row in rows:
        for label in (row["code"], *row["labels"]):
            other = code_of.setdefault(fold(label), row["code"])
            if other != row["code"]:
                raise UserError(f"{path}: the label {label!r} is of two classes, {other} and {row['code']}: keep one")
    if {row["code"] for row in rows} == set(DX):
        rows.sort(key=lambda row: DX.index(row["code"]))
    codes = tuple(row["code"] for row in rows)
    double = [code for code, n in Counter(codes).items() if n > 1]
    if double:
        raise UserError(f"{path} lists the class {double[0]} twice: keep one")
    stated = [row["malignant"] for row in rows]
    without = [code for code, value in zip(codes, stated, strict=True) if value is None]
    if without and len(without) < len(codes):
        raise UserError(
            f"{path} states malignant for some classes, but not for {without[0]}: state true or false for every class, "
            "or for none"
        )
    if codes == DX and without:
        return HAM_CLASSES, code_of
    columns = tuple(HAM_CLASSES.columns[DX.index(code)] for code in codes) if set(codes) <= set(DX) else codes
    names = tuple(row["name"] for row in rows)
    return Classes(codes, columns, names, None if without else tuple(stated)), code_of


def _one_class(path: Path, number: int, item: Any) -> dict[str, Any]:
    """Code, name, malignant and labels of one entry of a class file."""
    where = f"{path}: class {number}"
    row = {"code": item} if isinstance(item, str) else item
    if not isinstance(row, dict):
        raise UserError(f"{where} is {item!r}: write a code in quotes, or {{code: …, name: …, malignant: true}}")
    unknown = set(row) - KEYS
    if unknown:
        raise UserError(f"{where} has the key {sorted(unknown)[0]!r}; known are code, name, malignant and labels")
    if "code" not in row:
        raise UserError(f"{where} has no code")
    for key in ("code", "name"):
        if not isinstance(row.get(key, ""), str):
            raise UserError(f"{where}: the {key} {row[key]!r} must be text: write it in quotes")
    code = normal_label(row["code"])
    name = normal_label(row.get("name", code)) or code
    fault = code_fault(code)
    if fault:
        raise UserError(f"{where}: the code {code!r} {fault}: choose another")
    if len(name) > MOST_CHARACTERS or any(_is_unsafe(character) for character in name):
        raise UserError(f"{where}: the name {name!r} is too long or holds control characters: choose another")
    malignant = row.get("malignant")
    if malignant is not None and not isinstance(malignant, bool):
        raise UserError(f"{where}: malignant must be true or false, not {malignant!r}")
    labels = row.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{where}: labels must be a list of the table's labels, each in quotes")
    return {"code": code, "name": name, "malignant": malignant, "labels": [normal_label(label) for label in labels]}


def run_classes_text(facts: RunClasses) -> str:
    """Returns the content of a run's classes.yaml."""
    codes, _, names, malignant = facts.classes
    lines = ["# The classes of this run, in the order of the network's outputs.", "classes:"]
    for i, (code, name) in enumerate(zip(codes, names, strict=True)):
        stated = f", malignant: {str(malignant[i]).lower()}" if malignant is not None else ""
        lines.append(f"- {{code: {_quoted(code)}, name: {_quoted(name)}{stated}}}")
    lines += [f"unit: {_quoted(facts.unit)}", f"notes: [{', '.join(_quoted(note) for note in facts.notes)}]"]
    return "\n".join(lines) + "\n"


def read_run_classes(path: Path) -> RunClasses:
    """Reads classes.yaml of a run folder.

    Raises:
        UserError: the file can't be read, or it is not a run's.
    """
    fix = "restore it, or start a new run"
    value = read_yaml_value(path, "file", fix)
    if not isinstance(value, dict) or not {"classes", "unit", "notes"} <= set(value):
        raise UserError(f"{path} must contain classes, unit and notes: {fix}")
    if value["unit"] not in ("images", "groups", "patients", "lesions") or not isinstance(value["notes"], list):
        raise UserError(f"{path}: unit or notes are not as training wrote them: {fix}")
    return RunClasses(read_class_file(path).classes, value["unit"], tuple(str(note) for note in value["notes"]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def malignancy_note(classes: Classes) -> str | None:
    """Returns a sentence if it is not stated which classes are malignant, or if all or none are."""
    if classes.malignant is None:
        return (
            "The data does not state which classes are malignant, so there is no triage. State it for every class in "
            f"{CLASS_FILE} if some are."
        )
    if not any(classes.malignant) or all(classes.malignant):
        which = "every class" if all(classes.malignant) else "no class"
        return f"By {CLASS_FILE}, {which} is malignant, so there is no triage."
    return None
