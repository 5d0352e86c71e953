"""Labels in an Excel workbook: what a cell shows is what counts, and a workbook that cannot be read says what to do."""

from __future__ import annotations

import builtins
from datetime import date, datetime, time
from pathlib import Path

import openpyxl
import pytest
from openpyxl.styles import Font

from fastfgssl.archive.labels.assignment import Facts, read_labels
from fastfgssl.archive.labels.excel import workbook_of
from fastfgssl.archive.labels.table import read_columns
from fastfgssl.archive.listing import find_images
from fastfgssl.runtime.errors import UserError
from helpers.command import run_command
from helpers.images import encode, gradient, write_files
from helpers.labels import Said, by_name
from helpers.paths import TOOLS


def book(path: Path, sheets: dict[str, list[list]], formats: dict[str, str] | None = None) -> Path:
    """A workbook of these sheets, the first with the formats of numbers of some cells."""
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in rows:
            sheet.append(row)
    for cell, format in (formats or {}).items():
        workbook.worksheets[0][cell].number_format = format
    workbook.save(path)
    return path


def read(folder: Path, table: Path, images: tuple[str, ...] = ("1.png", "2.png")) -> Said:
    write_files(folder / "data", dict.fromkeys(images, b""))
    found = find_images([folder / "data"])
    return by_name(read_labels(table, found), found)


def column(table: Path, name: str = "label") -> list[str | None]:
    read = read_columns(table, "image", (name,))
    words = read.columns[name].words
    return [words[code] if code >= 0 else None for code in read.columns[name].code.tolist()]


def test_the_first_sheet_or_the_one_that_is_named(tmp_path):
    rows = {"Visit 1": [["Image", "Label", "patient_id"], ["1.png", "mole", "P1"], ["2", "scar", "P1"]],
            "Visit 2": [["image", "label", "split"], ["1.png", "scar", "val"]]}  # fmt: skip
    table = book(tmp_path / "Labels.XLSX", rows)
    assert read(tmp_path, table).facts == {"1.png": Facts("mole", "P1", None), "2.png": Facts("scar", "P1", None)}
    said = read(tmp_path, Path(f"{table}:Visit 2"))
    assert said.facts == {"1.png": Facts("scar", None, "val")}
    with pytest.raises(UserError, match=r"Labels\.XLSX has no sheet 'Visit 3', only: Visit 1, Visit 2; did you mean"):
        read(tmp_path, Path(f"{table}:Visit 3"))
    workbook = openpyxl.load_workbook(table)
    workbook["Visit 1"].sheet_state = "hidden"
    workbook.active = 1
    workbook.save(table)
    assert read(tmp_path, table).facts == {"1.png": Facts("scar", None, "val")}, "the first that Excel shows"


def test_numbers_are_what_excel_shows(tmp_path):
    """Excel has one kind of number: 1 and 1.0 are the same, and zeros before it are a format."""
    rows = [["image", "label"], [1, 1.0], [2.0, 0.5], [7, "1.0"], ["0008", True], [3, 1e20 / 1e19]]
    table = book(tmp_path / "labels.xlsx", {"a": rows}, {"A4": "0000"})
    assert read_columns(table, "image", ("label",)).image.to_pylist() == ["1", "2", "0007", "0008", "3"]
    assert column(table) == ["1", "0.5", "1.0", "TRUE", "10"]
    said = read(tmp_path, table, ("1.png", "2.png", "0007.png", "8.png"))
    assert {name: facts.label for name, facts in said.facts.items()} == {
        "1.png": "1",
        "2.png": "0.5",
        "0007.png": "1.0",
    }
    assert [told.partition(":")[0] for told in said.unmatched] == ["line 5, '0008'", "line 6, '3'"]


def test_dates_are_the_standards(tmp_path):
    values = [date(2024, 3, 5), datetime(2024, 3, 5, 14, 30), time(9, 5), "5.3.2024"]
    table = book(tmp_path / "labels.xlsx", {"a": [["image", "label"], *([i, value] for i, value in enumerate(values))]})
    assert column(table) == ["2024-03-05", "2024-03-05 14:30:00", "09:05:00", "5.3.2024"]


def test_empty_rows_cells_and_columns(tmp_path):
    rows = [[], [None, "image", "label", None, "note"], [None, "1.png", " mole ", None, None], [], [None, None, None],
            [None, "2.png", None, None, "not seen"], [None, "3.png", "nan"], [None, "4.png", "#N/A"]]  # fmt: skip
    table = book(tmp_path / "labels.xlsx", {"a": rows})
    workbook = openpyxl.load_workbook(table)
    for row in range(8, 40):  # as if somebody had coloured them
        workbook["a"].cell(row + 3, 2).font = Font(bold=True)
    workbook.save(table)
    read = read_columns(table, "image", ("label",))
    assert (read.image.to_pylist(), read.line.tolist()) == (["1.png", "2.png", "3.png", "4.png"], [3, 6, 7, 8])
    assert column(table) == ["mole", None, None, None]


def test_the_declared_size_of_a_sheet_is_not_believed(tmp_path):
    """Some programs write A1 there, whatever the sheet holds."""
    import zipfile

    table = book(tmp_path / "labels.xlsx", {"a": [["image", "label"], ["1.png", "mole"]]})
    with zipfile.ZipFile(table) as old:
        members = {name: old.read(name) for name in old.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"]
    assert b'ref="A1:B2"' in sheet
    members["xl/worksheets/sheet1.xml"] = sheet.replace(b'ref="A1:B2"', b'ref="A1"')
    with zipfile.ZipFile(table, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    assert column(table) == ["mole"]


BAD = {
    "a number that is cut": (
        [["image", "label"], [1234567890123456789, "a"]],
        "labels.xlsx, A2 holds the number 12345678",
    ),
    "a formula": ([["image", "label"], ["1.png", '="a"&"b"']], "labels.xlsx, B2 holds a formula whose value is not in"),
    "only formulas": ([["image", "label"], ['="1.png"', '="a"']], "labels.xlsx, A2 holds a formula whose value is not"),
    "an error": ([["image", "label"], ["1.png", "#REF!"]], "labels.xlsx, B2 holds an error, #REF!"),
    "no column": ([["picture", "label"], ["1.png", "a"]], "labels.xlsx has no column 'image', only: picture, label"),
    "a column twice": ([["image", "label", "Label"], ["1.png", "a", "b"]], "labels.xlsx has the column 'label' twice"),
    "no rows": ([], "labels.xlsx has no column 'image', only: nothing"),
    "a cell beside": ([["image", "label"], ["1.png", "a", "b"]], "labels.xlsx, line 2: 3 cells for 2 columns"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_meant_is_one_clear_line(tmp_path, what):
    rows, expected = BAD[what]
    table = book(tmp_path / "labels.xlsx", {"a": rows})
    with pytest.raises(UserError) as told:
        read(tmp_path, table)
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


def test_what_no_workbook_is_says_so(tmp_path):
    files = {
        "text.xlsx": b"image,label\n",
        "cut.xlsx": book(tmp_path / "a.xlsx", {"a": [["image"]]}).read_bytes()[:-300],
    }
    write_files(tmp_path, files | {"old.xls": b"\xd0\xcf\x11\xe0", "zip.xlsx": b"PK\x05\x06" + bytes(18)})
    for name in ("text.xlsx", "cut.xlsx", "zip.xlsx"):
        with pytest.raises(
            UserError, match=rf"{name} is no Excel workbook that can be read \(.*\): save it as .xlsx or"
        ):
            read(tmp_path, tmp_path / name)
    with pytest.raises(UserError, match=r"old\.xls: workbooks of this kind are not read: save it as \.xlsx or CSV"):
        read(tmp_path, tmp_path / "old.xls")
    with pytest.raises(UserError, match=r"cannot read the labels .*nowhere\.xlsx: No such file or directory"):
        read(tmp_path, tmp_path / "nowhere.xlsx")


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    table = book(tmp_path / "labels.xlsx", {"a": [["image", "label"]]})
    real = builtins.__import__

    def without(name, *arguments):
        if name == "openpyxl":
            raise ImportError
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"is an Excel workbook: pip install 'fastfgssl\[excel\]' to read it"):
        read(tmp_path, table)


def test_names_of_workbooks():
    assert workbook_of(Path("a/labels.xlsx")) == (Path("a/labels.xlsx"), "")
    assert workbook_of(Path("labels.xlsm:Sheet 1")) == (Path("labels.xlsm"), "Sheet 1")
    assert workbook_of(Path("labels.xlsx.csv")) is workbook_of(Path("labels.csv")) is None


def test_prepare_takes_it(tmp_path):
    write_files(tmp_path / "data", {f"{i}.png": encode(gradient(40 + i, 30), "PNG") for i in range(3)})
    book(tmp_path / "labels.xlsx", {"a": [[]], "of 2024": [["image", "label"], [0, "mole"], [1, "scar"], [2, "mole"]]})
    words = ("data", "--out", "archive", "--labels", "labels.xlsx:of 2024", "--workers", 1)
    run = run_command(TOOLS / "prepare.py", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "3 images have one of 2 classes" in run.stdout
