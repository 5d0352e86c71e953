"""Every image below the sources is found once, in one order, and each row of the labels finds its image or is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.archive.labels.assignment import Facts, read_labels
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.folder import FolderSource, read_file
from fastfgssl.runtime.errors import UserError
from helpers.labels import Said, by_name


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def ids(*sources: Path) -> list[str]:
    return [entry.name for entry in find_images(sources).entries]


def test_order_is_that_of_the_paths_bytes(tmp_path):
    touch(tmp_path, "b/1.png", "a/2.JPG", "a-b/3.tif", "Ä.webp", "a.bmp", "Z.jpeg", "a/c/0.tiff")
    assert ids(tmp_path) == ["Z.jpeg", "a-b/3.tif", "a.bmp", "a/2.JPG", "a/c/0.tiff", "b/1.png", "Ä.webp"]


def test_other_files_are_counted(tmp_path):
    touch(tmp_path, "1.png", "x/notes.txt", "x/more.TXT", "README", ".hidden")
    touch(tmp_path, "1.2.840.pdf2", "x/._1.png", "__MACOSX/2.png", "Thumbs.db", "a.png/.DS_Store", "no image.Doe")
    assert find_images([tmp_path]).other_files == {
        ".txt": 2,
        "no suffix": 2,
        "other suffix": 2,  # a name's last part, which may be anybody's
        "AppleDouble": 2,
        "Thumbs.db": 1,
        ".DS_Store": 1,
    }


def test_links_are_followed_once_within_the_source_and_loops_end(tmp_path):
    touch(tmp_path / "source", "a/1.png", "b/2.png")
    touch(tmp_path / "elsewhere", "3.png")
    (tmp_path / "source/a/loop").symlink_to(tmp_path / "source")
    (tmp_path / "source/b/same.png").symlink_to(tmp_path / "source/a/1.png")
    (tmp_path / "source/circle.png").symlink_to(tmp_path / "source/circle.png")
    (tmp_path / "source/b/back").symlink_to(tmp_path / "source/a")
    (tmp_path / "source/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/link.png").symlink_to(tmp_path / "elsewhere/3.png")
    found = find_images([tmp_path / "source"])
    within = ["a/1.png", "b/2.png", "b/same.png", "circle.png"]
    assert [entry.name for entry in found.entries] == within
    assert found.other_files == {"link out of the source": 3}
    followed = find_images([tmp_path / "source"], SourceOptions(follow_links=True))
    assert [entry.name for entry in followed.entries] == sorted([*within, "again/3.png", "link.png"])


def test_a_file_that_becomes_a_link_out_of_the_source_is_not_followed(tmp_path):
    touch(tmp_path / "source", "a/1.png", "a/2.png")
    touch(tmp_path / "elsewhere", "1.png", "2.png")
    source = FolderSource(tmp_path / "source")
    entries = list(source.entries())
    (tmp_path / "source/a/1.png").unlink()
    (tmp_path / "source/a/1.png").symlink_to(tmp_path / "elsewhere/1.png")
    error, data = source.read(entries)
    assert (error.strerror, data) == ("it has become a link out of the source", b"")
    (tmp_path / "source/a").rename(tmp_path / "source/b")
    (tmp_path / "source/a").symlink_to(tmp_path / "elsewhere")
    assert all(isinstance(found, OSError) for found in source.read(entries))
    assert list(FolderSource(tmp_path / "source", SourceOptions(follow_links=True)).read(entries)) == [b"", b""]
    (tmp_path / "chosen.png").symlink_to(tmp_path / "elsewhere/1.png")
    chosen = FolderSource(tmp_path / "chosen.png")
    assert list(chosen.read(list(chosen.entries()))) == [b""]


def test_folders_in_each_other_end_no_run(tmp_path, monkeypatch):
    touch(tmp_path, "1.png", "z/2.png")
    monkeypatch.chdir(tmp_path)
    for depth in range(2300):
        if depth in (1200, 2200):
            Path("1.png").touch()
        Path("d").mkdir()
        os.chdir("d")
    monkeypatch.undo()
    try:
        found = find_images([tmp_path])
        assert [entry.name.lstrip("d/") for entry in found.entries] == ["1.png", "1.png", "z/2.png"]
        table = found.table.filter(found.table["damaged"]).to_pylist()
        assert {row["kind"] for row in table} == {"path too long"}
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # deeper than Python's goes


def test_what_is_no_file_is_counted_or_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    found = find_images([tmp_path])
    (broken,) = found.entries
    assert found.other_files == {"not a regular file": 1}
    with pytest.raises(OSError, match="not a regular file"):
        read_file(str(tmp_path / "pipe.png"))
    with pytest.raises(FileNotFoundError):
        broken.read()


def test_single_files_and_several_sources(tmp_path):
    touch(tmp_path, "one/1.png", "two/1.png", "two/x/2.png")
    assert ids(tmp_path / "one/1.png") == ["1.png"]
    assert ids(tmp_path / "two", tmp_path / "one/1.png") == ["two/1.png", "two/x/2.png", "one/1.png"]


def test_a_name_that_is_not_utf8_gets_a_readable_id(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(path)).write_bytes(b"data")
    (entry,) = find_images([tmp_path]).entries
    assert entry.name == "\\xff.png"
    assert entry.read() == b"data"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "the source .*nowhere does not exist"),
        (["empty"], "no images below .*empty, nor any other files"),
        (["texts"], r"no images below .*texts, only 2 x \.txt, 1 x \.nii"),
        (["no.zip"], "no images below .*no.zip, only 1 x damaged container: it has no directory: is it cut off"),
        (["a", "a/images"], "images would count twice: the source .*a/images lies in the source .*a$"),
        (["a/images/1.png", "a"], "images would count twice"),
        (["a", "a"], "images would count twice"),
        (
            ["a/images", "b/images"],
            "two images would have the name images/1.png: .*a/images/1.png and .*b/images/1.png",
        ),
    ],
)
def test_bad_sources(tmp_path, sources, message):
    touch(tmp_path, "a/images/1.png", "b/images/1.png", "texts/1.txt", "texts/2.txt", "texts/3.nii")
    touch(tmp_path, "no.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_images([tmp_path / source for source in sources], SourceOptions(depth=3))


def labels_of(sources: list[Path], table: Path, **options: str) -> Said:
    found = find_images(sources)
    return by_name(read_labels(table, found, **options), found)


def read(tmp_path: Path, table: str | bytes, source: str = "data", where: str = "labels.csv", **options: str):
    path = tmp_path / where
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return labels_of([tmp_path / source], path, **options)


@pytest.mark.parametrize(
    ("cell", "id"),
    [
        ("images/1.png", "images/1.png"),  # relative to the source
        ("./images/../images/1.png", "images/1.png"),
        ("data/images/1.png", "images/1.png"),  # relative to the table
        ("1.png", "images/1.png"),  # its name
        ("1", "images/1.png"),  # its name without suffix
        ("top.jpg", "top.jpg"),  # the source's own, though another has that name
        ("deep/top.jpg", "deep/top.jpg"),
        ("data\\images\\1.png", "images/1.png"),  # of Windows
    ],
)
def test_every_way_to_name_an_image(tmp_path, cell, id):
    touch(tmp_path, "data/images/1.png", "data/top.jpg", "data/deep/top.jpg")
    labels = read(tmp_path, f"image,label\n{cell},x\n")
    assert labels.facts == {id: Facts("x", None, None)}
    assert labels.unmatched == []


def test_absolute_paths_and_ids_of_several_sources(tmp_path):
    touch(tmp_path, "one/1.png", "two/1.png", "two/2.png")
    table = tmp_path / "labels.csv"
    table.write_text(f"image,label\n{tmp_path}/one/1.png,x\ntwo/1.png,y\n2.png,z\n1.png,w\n")
    labels = labels_of([tmp_path / "one", tmp_path / "two"], table)
    assert {id: facts.label for id, facts in labels.facts.items()} == {
        "one/1.png": "x",
        "two/1.png": "y",
        "two/2.png": "z",
    }
    assert labels.unmatched == ["line 5, '1.png': several images have it"]  # a guess could give a wrong label


def test_rows_without_an_image_are_told_and_their_classes_count(tmp_path):
    touch(tmp_path, "data/1.png", "data/2.png")
    labels = read(tmp_path, "image,label\n1,b\nmissing.png,a\n2,\n")
    assert labels.classes == ["a", "b"]
    assert labels.rows == 3
    assert labels.unmatched == ["line 3, 'missing.png': no image has it"]
    assert labels.facts.keys() == {"1.png"}  # of the other, it says nothing


def test_group_and_split(tmp_path):
    touch(tmp_path, "data/1.png", "data/2.png")
    table = "\ufeffimage, label,lesion_id,patient_id,split,site\n1,a,L1,P1,fit,S1\n\n2,b,L2,,val,S2\n"
    assert read(tmp_path, table).facts == {"1.png": Facts("a", "P1", "fit"), "2.png": Facts("b", None, "val")}
    assert read(tmp_path, table, group_column="site").facts["2.png"] == Facts("b", "S2", "val")


def test_rows_may_repeat_but_not_contradict(tmp_path):
    touch(tmp_path, "data/1.png", "data/2.png")
    assert len(read(tmp_path, "image,label\n1,a\n1.png,a\n").facts) == 1
    with pytest.raises(UserError, match=r"labels.csv: line 2 and line 4 say different things of 1.png$"):
        read(tmp_path, "image,label\n1,a\n2,a\n1.png,b\n")
    with pytest.raises(UserError, match="line 2 and line 3 say different"):
        read(tmp_path, "image,label,split\n1,a,fit\n1.png,a,val\n")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "has no column 'image', only: nothing"),
        ("file,label\n1,a\n", "has no column 'image', only: file, label"),
        ("image,diagnosis\n1,a\n", "has no column 'label', only: image, diagnosis"),
        ("image,label\n", "no row matches an image, e.g. it has no rows"),
        ("image,label\nother,a\n", "no row matches an image, e.g. line 2, 'other': no image has it"),
        ("image,label\n1,a,b\n", "line 2: 3 cells for 2 columns"),
        (b"image,label\n1,\xe4\n", "is not a CSV file in UTF-8: .*byte 0xe4 .*; Excel saves such as CSV UTF-8$"),
        ('image,label\n1,"a\n', "is not a CSV file in UTF-8: unexpected end of data"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    touch(tmp_path, "data/1.png")
    with pytest.raises(UserError, match=message):
        read(tmp_path, table)


def test_missing_table_and_column(tmp_path):
    touch(tmp_path, "data/1.png")
    with pytest.raises(UserError, match=r"cannot read the labels .*none.csv: No such file or directory"):
        labels_of([tmp_path / "data"], tmp_path / "none.csv")
    with pytest.raises(UserError, match="has no column 'nurse', only: image, label"):
        read(tmp_path, "image,label\n1,a\n", group_column="nurse")


@given(st.data())
def test_a_row_never_labels_two_images_nor_guesses(tmp_path_factory, data):
    """Over random trees: a file name finds its image exactly if no other image has that name."""
    folder = tmp_path_factory.mktemp("tree")
    path = st.builds("{}/{}.png".format, st.sampled_from(["a", "b", "c"]), st.sampled_from("123"))
    paths = data.draw(st.sets(path, min_size=1))
    touch(folder / "data", *paths)
    names = {Path(path).name for path in paths}
    table = folder / "labels.csv"
    table.write_text("image,label\n" + "".join(f"{name},x\n" for name in sorted(names)))
    unique = {path for path in paths if sum(Path(other).name == Path(path).name for other in paths) == 1}
    if not unique:
        with pytest.raises(UserError):
            labels_of([folder / "data"], table)
        return
    labels = labels_of([folder / "data"], table)
    assert labels.facts.keys() == unique
    assert len(labels.unmatched) == len(names) - len(unique)
