"""Trees with a folder for each class need no table."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfgssl.archive.labels.assignment import Facts, labels_of_folders
from fastfgssl.archive.listing import find_images
from fastfgssl.runtime.errors import UserError
from helpers.labels import Said, by_name


def read(folder: Path, *paths: str, sources: tuple[str, ...] = (".",)) -> Said:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    found = find_images([folder / source for source in sources])
    return by_name(labels_of_folders(found), found)


def test_the_first_folder_is_the_class(tmp_path):
    labels = read(tmp_path, "mole/1.png", "mole/patient 7/2.png", "freckle/train/3.png", "notes.txt")
    assert labels.classes == ["freckle", "mole"]
    assert labels.facts == {
        "freckle/train/3.png": Facts("freckle", None, None),
        "mole/1.png": Facts("mole", None, None),
        "mole/patient 7/2.png": Facts("mole", None, None),
    }


def test_folders_of_splits_may_stand_above_them(tmp_path):
    labels = read(tmp_path, "Training/a/1.png", "Training/b/2.png", "valid/b/x/3.png", "test/4.png")
    assert labels.classes == ["a", "b"]
    assert labels.facts == {
        "Training/a/1.png": Facts("a", None, "train"),
        "Training/b/2.png": Facts("b", None, "train"),
        "valid/b/x/3.png": Facts("b", None, "val"),
        "test/4.png": Facts(None, None, "test"),
    }


def test_sources_may_be_the_splits(tmp_path):
    labels = read(tmp_path, "train/a/1.png", "val/b/2.png", "more/a/3.png", sources=("train", "val"))
    assert labels.facts == {"train/a/1.png": Facts("a", None, "train"), "val/b/2.png": Facts("b", None, "val")}


def test_several_sources_share_their_classes(tmp_path):
    labels = read(tmp_path, "train/a/1.png", "clinic/a/2.png", "clinic/b/3.png", sources=("train", "clinic"))
    assert {id: facts.label for id, facts in labels.facts.items()} == {
        "train/a/1.png": "a",
        "clinic/a/2.png": "a",
        "clinic/b/3.png": "b",
    }
    assert {facts.split for facts in labels.facts.values()} == {None}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["1.png", "2.png", "a/3.png"],
            r"2 of the images lie in no folder of a class \(.*1.png, for one\): .* move them",
        ),
        (
            ["train/a/1.png", "val/a/2.png", "mole/3.png"],
            "the folders train, val look like splits, but stand beside mole",
        ),
        (
            ["images/1.png", "images/2.png"],
            "all images lie in one folder, images, so there are no classes .* a folder for",
        ),
        (["train/a/1.png", "val/a/2.png"], "all images lie in one folder, a, so"),
        (["train/1.png", "test/2.png"], "no folder lies in test, train, so there are no classes"),
    ],
)
def test_trees_that_have_no_classes_say_why(tmp_path, paths, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, *paths)
