"""An archive holds nobody's name: not in ids, groups, tables or shards; the way back lies beside the key."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import hmac
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from fastfgssl.archive.building.inputs import Input, harmless, read_inputs, write_inputs
from fastfgssl.archive.building.keys import Key, key_advice, load_key
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.runtime.errors import UserError
from helpers.command import run_command
from helpers.containers import zip_of
from helpers.dicom import dataset, encoded
from helpers.images import RGB, encode, fixed_key, gradient, inputs_of, names_of, write_files
from helpers.names import NAME, TEXT, jpegs_with_names, names_in, others_with_names, pngs_with_names
from helpers.paths import TOOLS

SECRET = "Müller-Lüdenscheidt"


def planted(folder: Path) -> Path:
    """A source whose every name is a secret."""
    files = {
        f"{SECRET}/{SECRET} 1.png": encode(gradient(), "PNG"),
        f"{SECRET}/{SECRET} 2.png": encode(gradient(90, 30), "PNG"),
        f"{SECRET}/copy of {SECRET}.png": encode(gradient(), "PNG"),
        f"{SECRET}/{SECRET} 3.png": SECRET.encode(),  # whose reason quotes it
        f"{SECRET}/notes.{SECRET}": b"",
        f"{SECRET}/.DS_Store": b"",
    }
    rows = "".join(f"{SECRET} {i},mole,{SECRET}\n" for i in (1, 2, 3))
    return write_files(folder / SECRET, files | {"labels.csv": f"image,label,patient_id\n{rows}".encode()})


def everything(folder: Path) -> bytes:
    paths = sorted(folder.rglob("*"))
    return b"\0".join([str(path.relative_to(folder)).encode() + path.read_bytes() for path in paths if path.is_file()])


def test_no_name_is_in_any_byte_of_the_archive(tmp_path):
    source = planted(tmp_path / "in")
    options = PrepareOptions(sources=[source], out=tmp_path / "archive", labels=source / "labels.csv", workers=1)
    summary = prepare(options)
    assert (summary.samples, summary.duplicates, summary.quarantined.total()) == (2, 1, 1)
    contents = everything(tmp_path / "archive").lower()
    assert b"report.html" in contents
    for part in (SECRET, "lüdenscheidt", "denscheidt", "copy of", "notes.", "m&uuml;ller", str(source)):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
            assert part.lower().encode(encoding) not in contents, (part, encoding)
    assert len(inputs_of(options)) == 7  # and each is where its owner finds it
    (quarantined,) = (row for row in inputs_of(options) if row["outcome"] == "quarantined")
    assert quarantined["path"].endswith(f"{SECRET} 3.png")
    assert f"{SECRET} 3.png" in options.report_file.read_text()
    for path in (options.key_file, options.inputs_file, options.report_file, options.left_out_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(options.key_file.parent.stat().st_mode) == 0o700


def test_what_files_hold_beside_their_pixels_is_in_no_byte_of_the_archive(tmp_path):
    """Every place of every format where a name can be, in one archive: its shards, members, tables and report."""
    scan = dataset(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64), SpecificCharacterSet="ISO_IR 192")
    for tag in (0x00080070, 0x00081030, 0x00100010, 0x00100020, 0x00104000):
        scan.add_new(tag, "LO", NAME)
    scan.private_block(0x0011, NAME, create=True).add_new(1, "OB", TEXT)
    icon = Dataset()
    icon.PixelData = TEXT + bytes(len(TEXT) % 2)
    icon["PixelData"].VR = "OB"
    scan.IconImageSequence = [icon]
    pictures = jpegs_with_names(RGB) | pngs_with_names(RGB) | others_with_names(RGB)
    files = {f"{NAME} {place}.tif": data for place, data in pictures.items()}  # their bytes say what they are
    files |= {f"{NAME}.dcm": encoded(scan), f"{NAME}.zip": zip_of({f"{NAME}.png": pictures["texts"]}), "0.bmp": TEXT}
    source = write_files(tmp_path / NAME, files)
    asked = PrepareOptions(
        sources=[source], out=tmp_path / "archive", duplicates="keep", members="json", burned_in="keep", workers=1
    )
    assert prepare(asked).samples == len(files) - 1
    told = {path.name: names_in(path.read_bytes()) for path in asked.out.rglob("*") if path.is_file()}
    assert len(told) >= 6
    assert not any(told.values()), told
    assert names_in(asked.inputs_file.read_bytes())


def test_ids_and_groups_are_hmacs_that_a_second_archive_repeats(tmp_path):
    source = planted(tmp_path / "in")
    options = {"sources": [source], "labels": source / "labels.csv", "workers": 1, "key": tmp_path / "secret/key"}
    archives = []
    for name in ("one", "two"):
        prepare(PrepareOptions(out=tmp_path / name, **options))
        archives.append(Archive.open(tmp_path / name).columns(np.arange(2), ["id", "group"]))
    secret = bytes.fromhex((tmp_path / "secret/key").read_text())
    for columns in archives:
        for id in columns["id"]:
            path = names_of(PrepareOptions(out=tmp_path / "one", **options))[id]
            name = f"{SECRET}/{Path(path).relative_to(source)}"
            assert id == hmac.digest(secret, b"path\0" + name.encode(), hashlib.sha256)[:16].hex()
        digest = hmac.digest(secret, b"group\0" + SECRET.encode(), hashlib.sha256)
        assert columns["group"].tolist() == [int.from_bytes(digest[:7], "big")] * 2
    assert (tmp_path / "secret/one.inputs.csv").exists()
    assert not (tmp_path / "one.private").exists()


def test_another_key_gives_other_ids(tmp_path):
    first, second = load_key(tmp_path / "a/key"), load_key(tmp_path / "b/key")
    assert first.id("source", b"name") != second.id("source", b"name")
    assert first.id("source", b"name") == load_key(tmp_path / "a/key").id("source", b"name")
    assert Key(b"1" * 32).id("a", b"b/c") != Key(b"1" * 32).id("a", b"b/d")
    (tmp_path / "bad").write_text("0123")
    with pytest.raises(UserError, match="bad is no key: it must hold 64 hexadecimal digits"):
        load_key(tmp_path / "bad")
    with pytest.raises(UserError, match=r"none is not there, and nothing can be added .*: put a copy back, or"):
        load_key(tmp_path / "none", make=False)


def test_a_new_key_is_told_and_one_that_others_may_read(tmp_path):
    """A misspelled --key would make new ids, and patients of two archives would not be the same, without a word."""
    path = tmp_path / "keys/key"
    assert key_advice(path, load_key(path)) == (
        f"{path} was made: keep a copy, and name it with --key where ids and groups are to be the same"
    )
    assert key_advice(path, load_key(path)) == ""
    path.chmod(0o640)  # as a copy on another machine is
    assert key_advice(path, load_key(path)).startswith(f"{path} can be read by others")


def test_a_key_that_goes_with_a_container_is_told(tmp_path, monkeypatch):
    """Whose --out is mounted, and what lies beside it is not."""
    source, out = write_files(tmp_path / "source", {"1.png": encode(gradient(), "PNG")}), tmp_path / "archive"
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    assert f"it lies beside {out}, not on the disk there" in prepare(PrepareOptions(sources=[source], out=out)).key
    assert prepare(PrepareOptions(sources=[source], out=out)).key == ""


@given(st.text())
def test_a_cell_is_no_formula_and_moves_no_cursor(text):
    cell = harmless(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert all(char.isprintable() or char.isspace() for char in cell if ord(char) < 0xA0)
    assert not set(cell) & set("\x1b\r\n\t\x00\x9b\u202e")


def test_hostile_names_are_harmless_in_the_table_and_on_the_terminal(tmp_path):
    names = ["=cmd|'x'!A1.png", "\x1b[2Jred.png", "line\nend.png", "\u202egnp.exe.png", '"quoted", name.png']
    source = write_files(tmp_path / "source", dict.fromkeys(names, b"no image") | {"1.png": encode(gradient(), "PNG")})
    result = run_command(TOOLS / "prepare.py", source, "--out", tmp_path / "archive")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    with (tmp_path / "archive.private/archive.inputs.csv").open(newline="") as file:
        text = file.read()
    assert not set(text) & set("\x1b\r\x00\u202e")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 6
    assert {row["path"].rpartition("source/")[2] for row in rows} == {
        "=cmd|'x'!A1.png",
        r"\x1b[2Jred.png",
        r"line\nend.png",
        r"\u202egnp.exe.png",
        '"quoted", name.png',
        "1.png",
    }


def test_archives_of_one_name_under_one_key_keep_their_names(tmp_path):
    key = fixed_key(tmp_path / "keys/key")
    for folder, colour in (("a", 30), ("b", 40)):
        source = write_files(tmp_path / folder / f"source-{folder}", {"1.png": encode(gradient(colour, 30), "PNG")})
        options = PrepareOptions(sources=[source], out=tmp_path / folder / "mine", key=key, workers=1)
        prepare(options)
    paths = [f"{tmp_path}/a/source-a/1.png", f"{tmp_path}/b/source-b/1.png"]
    assert [row[2] for row in read_inputs(options.inputs_file)] == paths
    # what is replaced goes with its names
    source.joinpath("1.png").rename(source / "2.png")
    prepare(dataclasses.replace(options, overwrite=True))
    assert [row[2] for row in read_inputs(options.inputs_file)] == [paths[0], f"{tmp_path}/b/source-b/2.png"]


def test_rows_of_an_earlier_table_stay_as_they_are(tmp_path):
    table = tmp_path / "private/inputs.csv"
    write_inputs(table, (), [Input("1", "", "=a", "written", ""), Input("2", "page 3", "b\n", "skipped", "-x")])
    write_inputs(table, list(read_inputs(table)), [Input("3", "", "c", "written", "")])
    assert list(read_inputs(table)) == [
        ["1", "", "'=a", "written", ""],
        ["2", "page 3", r"b\n", "skipped", "'-x"],
        ["3", "", "c", "written", ""],
    ]


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        with pytest.raises(UserError, match=r"cannot write the key .*/key: No space left on device"):
            load_key(tmp_path / "key")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "hardlink_to", lambda *arguments: refuse())  # a file system without links
    key = load_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_key(tmp_path / "key").fingerprint == key.fingerprint
