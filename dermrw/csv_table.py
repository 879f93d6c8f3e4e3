"""Reads the CSV files that users have, in any common encoding and with any common separator. No torch, no pandas.

Spreadsheet programs write UTF-16, Windows-1252, semicolons, tabs, empty columns and empty rows. The encoding is found
by the byte order mark, by zero bytes, or by trying UTF-8 before Windows-1252. The separator is the one that divides the
header into most columns.
"""

import codecs
import csv
import io
import os
import re
from collections import Counter
from typing import NamedTuple

from dermrw.errors import UserError
from dermrw.files import open_regular

MOST_BYTES = 200_000_000  # a table of a million images has fewer
NO_VALUE = ("nan", "na", "n/a", "n.a.", "#n/a", "<na>", "null")  # how programs write a missing value, in lower case
MISSING = ("none", "unknown", "not known")  # further texts of a cell that names no patient or lesion
SEPARATORS = ",;\t|"
MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_FILES = {b"PK\x03\x04": "a spreadsheet or an archive", b"\xd0\xcf\x11\xe0": "a spreadsheet", b"%PDF": "a PDF"}


def is_missing(text: str) -> bool:
    """Whether a cell names no patient, lesion or group. One without letters and digits, such as `-`, names none."""
    folded = text.strip().casefold()
    return folded in NO_VALUE or folded in MISSING or not any(character.isalnum() for character in folded)


class CsvTable(NamedTuple):
    """The text of a CSV file, without spaces around the cells. Every row has as many cells as there are columns."""

    columns: list[str]
    rows: list[list[str]]
    lines: list[int]  # line number in the file of each row


def read_csv_table(path: str | os.PathLike[str], comments: bool = False) -> CsvTable:
    """Reads a CSV file with a header row. Empty rows, columns without a name and empty cells at line ends are dropped.

    Args:
        path: the file.
        comments: whether text from a # to the end of the line is a comment.

    Raises:
        UserError: the file can't be read, is not text, is empty, has two columns of one name, a row with more cells
            than the header, or an unbalanced quotation mark.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 10**6} MB, too many for a table of images: is it one?")
    return parse_csv_table(data, path, comments)


def parse_csv_table(data: bytes, path: object, comments: bool = False, most_cells: int | None = None) -> CsvTable:
    """Returns the table in the content of a CSV file; see `read_csv_table`.

    Args:
        data: the content.
        path: of the file, for messages.
        comments: whether text from a # to the end of the line is a comment.
        most_cells: largest number of columns times rows; None: any.

    Raises:
        UserError: as of `read_csv_table`; or the table has more cells.
    """
    text = _decode(data, path)
    text, separator = _excel_separator(text)
    rows = _parse(text, separator or _separator(text, comments), path, comments)
    if not rows:
        raise UserError(f"{path} is empty: it must have rows below a header with the names of the columns")
    (_, header), *body = rows
    if most_cells is not None and len(header) * len(rows) > most_cells:
        raise UserError(f"{path} has more than {most_cells:,} cells: remove rows or columns that are not needed")
    named = [i for i, name in enumerate(header) if name]
    columns = [header[i] for i in named]
    count = Counter(name.casefold() for name in columns)
    doubled = [name for name in columns if count[name.casefold()] > 1]
    if doubled:
        names = doubled[0] if doubled[0] == doubled[1] else f"{doubled[0]} and {doubled[1]}"
        raise UserError(f"{path} has two columns {names}: delete or rename one")
    for line, row in body:
        if len(row) > len(header):
            raise UserError(
                f"{path}, line {line} has {len(row)} cells, but the header has {len(header)} columns: "
                "put quotation marks around cells that contain the separator"
            )
        row.extend([""] * (len(header) - len(row)))
    return CsvTable(columns, [[row[i] for i in named] for _, row in body], [line for line, _ in body])


def _decode(data: bytes, path: object) -> str:
    for start, kind in OTHER_FILES.items():
        if data.startswith(start):
            raise UserError(f"{path} is {kind}, not a CSV file: save the table as CSV (UTF-8)")
    if re.match(rb"\s*<(!doctype|html|\?xml)", data[:200], re.IGNORECASE):
        raise UserError(f"{path} is a web page, not a CSV file: download the table again")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None) or _utf16(data[:4096])
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding or _has_utf8_characters(data):
            raise UserError(
                f"{path} is damaged at byte {error.start:,}: save it again as CSV (UTF-8), or download it again"
            ) from None
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text in UTF-8, UTF-16 or Windows-1252: save it as CSV (UTF-8)") from None
    if "\0" in text:
        raise UserError(f"{path} is not a text file: save the table as CSV (UTF-8)")
    return text.removeprefix("\ufeff").rstrip("\x1a")  # Ctrl-Z: the end of a file in DOS


def _utf16(head: bytes) -> str | None:
    """Returns UTF-16 without a byte order mark: every second byte of Western text is zero."""
    even, odd = head[0::2], head[1::2]
    if odd and odd.count(0) > 0.8 * len(odd) and 0 not in even:
        return "utf-16-le"
    if odd and even.count(0) > 0.8 * len(even) and 0 not in odd:
        return "utf-16-be"
    return None


def _has_utf8_characters(data: bytes) -> bool:
    """Whether the bytes hold UTF-8 outside ASCII, although they are not UTF-8 as a whole: then they are damaged."""
    return any(c > "\x7f" and not "\udc80" <= c <= "\udcff" for c in data.decode("utf-8", "surrogateescape"))


def _excel_separator(text: str) -> tuple[str, str | None]:
    """Returns the text with Excel's first line `sep=;` blanked, and its separator, or None if there is no such line."""
    found = re.match(r'"?sep=(.)"?[\r\n]', text, re.IGNORECASE)
    return (text[found.end() - 1 :], found[1]) if found else (text, None)


def _separator(text: str, comments: bool) -> str:
    lines = (line for line in text.splitlines() if line.strip() and not (comments and line.lstrip().startswith("#")))
    header = re.sub(r'"[^"]*"', "", next(lines, ""))
    return max(SEPARATORS, key=header.count)


def _parse(text: str, separator: str, path: object, comments: bool) -> list[tuple[int, list[str]]]:
    """Returns line number and cells of each row that is not empty, without empty cells at its end."""
    if comments:
        text = "".join("\n" if line.lstrip().startswith("#") else line for line in io.StringIO(text, newline=""))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if comments:
                cells = _without_comment(cells)
            if rows and any(
                line.count(separator) >= max(2, len(rows[0][1]) - 1) for c in cells if "\n" in c or "\r" in c
                for line in c.splitlines()
            ):  # fmt: skip
                raise csv.Error("a cell contains whole rows")
            cells = [cell.strip() for cell in cells]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(
            f"{path} can't be read as a table up to line {reader.line_num:,} ({error}): is a quotation mark unbalanced?"
        ) from None
    return rows


def _without_comment(cells: list[str]) -> list[str]:
    for i, cell in enumerate(cells):
        if "#" in cell:
            return [*cells[:i], cell.partition("#")[0]]
    return cells
