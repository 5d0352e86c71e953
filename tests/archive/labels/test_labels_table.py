"""Tables as people have them: other separators, empty cells of pandas, and a million rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.archive.labels.assignment import Facts, read_labels
from fastfgssl.archive.labels.matching import NONE, SEVERAL, Finder
from fastfgssl.archive.labels.table import read_columns
from fastfgssl.archive.listing import find_images
from fastfgssl.runtime.errors import UserError
from helpers.images import write_files
from helpers.labels import Said, by_name


def read(folder: Path, text: str, images: tuple[str, ...] = ("1.png", "2.png")) -> Said:
    write_files(folder / "data", dict.fromkeys(images, b""))
    (folder / "labels.csv").write_text(text)
    found = find_images([folder / "data"])
    return by_name(read_labels(folder / "labels.csv", found), found)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_that_of_the_header(tmp_path, separator):
    rows = [["image", "note, of a nurse", "label"], ["1.png", "a; b, c\td", "mole"], ["2.png", "", "scar"]]
    text = "".join(separator.join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    assert read(tmp_path, text).facts == {"1.png": Facts("mole", None, None), "2.png": Facts("scar", None, None)}


@pytest.mark.parametrize("before", ["\n", "\r\n", "  \n\n"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_blank_lines_before_the_header_are_left_out(tmp_path, before, quote):
    table = tmp_path / "labels.csv"
    table.write_bytes(f"\ufeff{before}image,label\n1.png,{quote}mole{quote}\n".encode())
    read = read_columns(table, "image", ["label"])
    assert read.image.to_pylist() == ["1.png"]
    assert read.columns["label"].words == ["mole"]
    assert read.line.tolist() == [before.count("\n") + 2]


def test_nan_says_nothing(tmp_path):
    said = read(tmp_path, "image,label,patient_id,split\n1,mole,nan,NaN\n2,NaN,P1,val\n")
    assert said.facts == {"1.png": Facts("mole", None, None), "2.png": Facts(None, "P1", "val")}
    assert said.classes == ["mole"]
    missing = read(tmp_path, 'image,label,patient\n1,NA,"NULL"\n2,"<NA>",null\n')  # by rows, as for any quote
    assert missing.facts == {}  # else all these patients were one


def test_a_column_for_each_class(tmp_path):
    write_files(tmp_path / "data", dict.fromkeys(["1.png", "2.png", "3.png"], b""))
    table, found = tmp_path / "labels.csv", find_images([tmp_path / "data"])
    table.write_text("image,MEL,NV,BCC,patient\n1,0.0,1.0,,A\n2,1,0,0,NA\n3,0,0,0,\n9,0,0,1,\n")
    labels = by_name(read_labels(table, found, label_column="mel, NV,BCC"), found)
    assert labels.facts == {"1.png": Facts("NV", "A", None), "2.png": Facts("mel", None, None)}
    assert labels.classes == ["BCC", "NV", "mel"]
    for cells, said in (("1,1,0", "mel=1, NV=1, BCC=0"), ("-1,0,", "mel=-1, NV=0"), ("0,x,1", "mel=0, NV=x, BCC=1")):
        table.write_text(f"image,mel,NV,BCC\n1,{cells}\n")
        with pytest.raises(UserError, match=f"labels.csv, line 2: {said} is no class: .* one of them holds 1"):
            read_labels(table, found, label_column="mel,NV,BCC")
    with pytest.raises(UserError, match="has no column 'DF', only: image, mel, NV, BCC"):
        read_labels(table, found, label_column="mel,DF")


def test_a_column_whose_name_has_a_comma_is_one(tmp_path):
    write_files(tmp_path / "data", {"1.png": b""})
    table, found = tmp_path / "labels.csv", find_images([tmp_path / "data"])
    table.write_text('image,"Diagnosis, final"\n1,nv\n')
    labels = read_labels(table, found, label_column="diagnosis, final")
    assert by_name(labels, found).facts == {"1.png": Facts("nv", None, None)}


def test_columns_of_other_names_and_letters(tmp_path):
    write_files(tmp_path / "data", {"ISIC_1.jpg": b""})
    table = tmp_path / "labels.csv"
    table.write_text("lesion_id,image_id,dx,SPLIT\nHAM_0,ISIC_1.png,nv,val\n")  # and another format
    found = find_images([tmp_path / "data"])
    labels = read_labels(table, found, image_column="Image_ID", label_column="dx")
    assert by_name(labels, found).facts == {"ISIC_1.jpg": Facts("nv", "HAM_0", "val")}
    table.write_text("Image,Label\nISIC_1,nv\n")
    assert by_name(read_labels(table, found), found).facts == {"ISIC_1.jpg": Facts("nv", None, None)}


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"labels.csv has the column 'label' twice: which one counts\? Rename the other"
    ):
        read(tmp_path, "image,label,label\n1,mole,scar\n")


def test_two_ways_to_read_a_cell_are_told_if_they_differ(tmp_path):
    """Relative to the source it is one image, relative to the table another."""
    images = ("data/1.png", "1.png")
    said = read(tmp_path, "image,label\ndata/1.png,mole\n./data/data/1.png,scar\n", images)
    assert said.unmatched == ["line 2, 'data/1.png': several images have it"]
    assert said.facts == {"data/1.png": Facts("scar", None, None)}


def one_by_one(paths: list[str], names: list[str], folders: list[Path], cell: str) -> int:
    """What a cell means, by its definition."""
    exact = {paths.index(spelled) for folder in folders if (spelled := os.path.normpath(folder / cell)) in paths}
    exact |= {names.index(cell)} if cell in names else set()
    found = exact or {i for i, path in enumerate(paths) if cell in (Path(path).name, Path(path).stem)}
    return NONE if not found else found.pop() if len(found) == 1 else SEVERAL


@given(st.data())
def test_images_are_found_as_one_by_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("match")
    part = st.sampled_from(["a", "b", "data", "1.png", "2.png"])
    path = st.lists(st.sampled_from(["a", "b", "data"]), max_size=2).map("/".join)
    images = data.draw(st.sets(st.builds(os.path.join, path, st.sampled_from(["1.png", "2.png"])), min_size=1))
    write_files(folder / "data", dict.fromkeys(images, b""))
    found = find_images([folder / "data"])
    cells = data.draw(
        st.lists(st.lists(st.one_of(part, st.sampled_from(["..", ".", "", "1", "2"])), max_size=4), max_size=9)
    )
    texts = ["/".join(cell) for cell in cells] + [f"{folder}/data/{name}" for name in images]
    paths, names = [entry.path for entry in found.entries], [entry.name for entry in found.entries]
    expected = [one_by_one(paths, names, [folder / "data", folder], text) for text in texts]
    assert Finder(found, folder)(pa.chunked_array([texts], pa.large_string())).tolist() == expected


@given(st.data())
def test_the_fast_way_reads_what_the_other_does(tmp_path_factory, data):
    cell = st.sampled_from(["a", " b ", "", "nan", "NA", "null", "1.png", "ä", "\u00a0x"])
    rows = data.draw(st.lists(st.lists(cell, min_size=3, max_size=3), min_size=1, max_size=9))
    end, separator = data.draw(st.sampled_from(["\n", "\r\n"])), data.draw(st.sampled_from(",;\t"))
    text = end.join(separator.join(row) for row in [["image", " label", "split"], *rows])
    folder = tmp_path_factory.mktemp("tables")
    plain, quoted = folder / "plain.csv", folder / "quoted.csv"
    plain.write_text(text + data.draw(st.sampled_from(["", end])), newline="")
    quoted.write_text(text.replace("image", '"image"', 1), newline="")
    fast, slow = (read_columns(table, "image", ("label",), ("split", "group")) for table in (plain, quoted))
    assert fast.line.tolist() == slow.line.tolist()
    assert fast.image.to_pylist() == slow.image.to_pylist()
    assert {name: [column.words, column.code.tolist()] for name, column in fast.columns.items()} == {
        name: [column.words, column.code.tolist()] for name, column in slow.columns.items()
    }


def test_many_rows(tmp_path):
    """2 % of a million: what takes time is arrays, whose size does not matter here."""
    images = tuple(f"{i % 10}/{i:06d}.png" for i in range(20_000))
    rows = "".join(f"{i:06d},{'ab'[i % 2]},patient {i // 3},\n" for i in range(20_000))
    said = read(tmp_path, f"image,label,patient,split\n{rows}", images)
    assert (said.rows, len(said.facts), said.unmatched) == (20_000, 20_000, [])
    assert said.facts["7/012347.png"] == Facts("b", "patient 4115", None)
    assert np.all([name[2:8] in name for name in said.facts])
