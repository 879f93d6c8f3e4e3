"""CSV files as spreadsheet programs and data archives write them."""

import re
from pathlib import Path

import pytest

from dermrw.csv_table import parse_csv_table, read_csv_table
from dermrw.errors import UserError

TEXT = "lesion_id,image_id,dx\nL1,I1,nv\nL2,Rücken,mel\n"
COLUMNS, ROWS = ["lesion_id", "image_id", "dx"], [["L1", "I1", "nv"], ["L2", "Rücken", "mel"]]


def written(folder: Path, data: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_encodings_separators_and_line_ends(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    text = TEXT.replace(",", separator).replace("\n", end)
    table = read_csv_table(written(tmp_path, text.encode(encoding)))
    assert (table.columns, table.rows) == (COLUMNS, ROWS)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("\n", ",\n"),
        TEXT.replace("nv\n", "nv,,,\n"),
        re.sub(r"([^,\n]+)", r'"\1"', TEXT),
        "\n\n" + TEXT + ",,\n\n",
        "sep=,\n" + TEXT,
        re.sub(r"\b(?=I1|L1|Rü)", " ", TEXT),
        "".join(
            f"{i},{line}" if i != "h" else f",{line}" for i, line in zip("h12", TEXT.splitlines(True), strict=True)
        ),
        TEXT + "\x1a",
    ],
    ids=["trailing commas", "some trailing commas", "quoted", "empty rows", "sep=", "spaces", "row numbers", "Ctrl-Z"],
)
def test_shapes_of_one_table(tmp_path: Path, text: str) -> None:
    table = read_csv_table(written(tmp_path, text))
    assert (table.columns, table.rows) == (COLUMNS, ROWS)


def test_short_rows_quotes_and_line_numbers(tmp_path: Path) -> None:
    table = read_csv_table(written(tmp_path, 'a,b,c\n1\n\n2,"x, ""y""",3\n4,"two\nlines",5\n'))
    assert table.rows == [["1", "", ""], ["2", 'x, "y"', "3"], ["4", "two\nlines", "5"]]
    assert table.lines[:2] == [2, 4]


def test_comments(tmp_path: Path) -> None:
    path = written(tmp_path, "# a, b, c\nimage_id\nI1 # why, and why not\n#I9\nI2\n")
    assert read_csv_table(path, comments=True).rows == [["I1"], ["I2"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x00\xff\xfe" * 50, "is not a text file"),
        (b"PK\x03\x04rest", "is a spreadsheet or an archive, not a CSV file: save the table as CSV"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not a CSV file: download"),
        (TEXT.encode() + "L3,é,nv\n".encode("cp1252"), "is damaged at byte"),
        (TEXT.encode("utf-16")[:-1], "is damaged at byte"),
        (b"a,b\n\x81\x8d,2\n", "is not text in UTF-8, UTF-16 or Windows-1252"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells, but the header has 2 columns"),
        (b"a,a\n1,2\n", "has two columns a"),
        (b'a,b,c\n1,"2,3\n4,5,6\n', "quotation mark unbalanced"),
        (b'a,b,c\n1,"2,3\n4,5,6\n"7,8,9\n', "quotation mark unbalanced"),
        (b'a,b,c\n1,"2,3\n4,5,6\n7,8",9\n', "quotation mark unbalanced"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "can't be read as a table up to line 2"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(UserError, match=message) as caught:
        read_csv_table(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_huge_file_is_named(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(2**36)  # sparse
    with pytest.raises(UserError, match="has more than 200 MB"):
        read_csv_table(tmp_path / "a.csv")


def test_a_table_in_memory_has_a_limit_of_cells() -> None:
    wide = ",".join(map(str, range(1000))).encode() + b"\n" + b"a\n" * 1000
    assert len(parse_csv_table(wide, "wide.csv").rows[999]) == 1000
    with pytest.raises(UserError, match="has more than 500,000 cells: remove rows or columns"):
        parse_csv_table(wide, "wide.csv", most_cells=500_000)
