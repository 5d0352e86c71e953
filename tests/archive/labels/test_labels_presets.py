"""Challenges as they are downloaded: each image has the class, group and split of the challenge's own tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.labels.assignment import Facts
from fastfgssl.archive.labels.presets import PRESETS, read_preset
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, Summary, prepare
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.evaluation.split import labelled_split
from fastfgssl.runtime.errors import UserError
from helpers.images import encode, fixed_key, gradient, names_of, write_files
from helpers.labels import Said, by_name

PICTURE = encode(gradient(22, 20), "JPEG")
CLASSES_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def isic2018(folder: Path, **parts: list[int]) -> Path:
    """The download of ISIC 2018's task 3, unpacked; parts: numbers of the images of Training, Validation and Test."""
    parts = parts or {"Training": [1, 2, 3, 4, 5, 6, 7, 8], "Validation": [11, 12], "Test": [21]}
    files = {}
    for part, numbers in parts.items():
        rows = ["image," + ",".join(CLASSES_2018)]
        for number in numbers:
            files[f"ISIC2018_Task3_{part}_Input/ISIC_{number:07d}.jpg"] = PICTURE
            hot = ",".join("1.0" if place == number % 7 else "0.0" for place in range(7))
            rows.append(f"ISIC_{number:07d},{hot}")
        files[f"ISIC2018_Task3_{part}_Input/ATTRIBUTION.txt"] = b"..."
        truth = f"ISIC2018_Task3_{part}_GroundTruth"
        files[f"{truth}/{truth}.csv"] = "\n".join(rows).encode()
    lesions = [f"ISIC_{number:07d},HAM_{number // 2:07d},histopathology" for number in parts.get("Training", [])]
    table = "\r\n".join(["image,lesion_id,diagnosis_confirm_type", *lesions])
    return write_files(folder, files | {"ISIC2018_Task3_Training_LesionGroupings.csv": table.encode()})


def isic2017(folder: Path) -> Path:
    files = {}
    for part, numbers in {"Training": [0, 1, 2, 3], "Validation": [10], "Test_v2": [20, 21]}.items():
        rows = ["image_id,melanoma,seborrheic_keratosis"]
        for number in numbers:
            name = f"ISIC_{number:07d}"
            files[f"ISIC-2017_{part}_Data/{name}.jpg"] = PICTURE
            files[f"ISIC-2017_{part}_Data/{name}_superpixels.png"] = b"no photograph"
            rows.append(f"{name},{float(number % 3 == 1)},{float(number % 3 == 2)}")
        files[f"ISIC-2017_{part}_Data/ISIC-2017_{part}_Data_metadata.csv"] = b"image_id,age_approximate,sex\n"
        files[f"ISIC-2017_{part}_Part3_GroundTruth.csv"] = "\n".join(rows).encode()
    return write_files(folder, files)


def aptos2019(folder: Path) -> Path:
    codes = [f"{number:012x}" for number in range(1000, 1040)]
    files = {f"train_images/{code}.png": PICTURE for code in codes} | {"test_images/0005cfc8afb6.png": PICTURE}
    rows = ["id_code,diagnosis", *(f"{code},{place % 5}" for place, code in enumerate(codes))]
    tables = {
        "train.csv": "\n".join(rows),
        "test.csv": "id_code\n0005cfc8afb6",
        "sample_submission.csv": "id_code,diagnosis",
    }
    return write_files(folder, files | {name: text.encode() for name, text in tables.items()})


def read(name: str, *sources: Path) -> Said:
    found = find_images(sources, SourceOptions(PRESETS[name].leave_out))
    return by_name(read_preset(name, found), found)


def test_isic_2018(tmp_path):
    labels = read("isic2018", isic2018(tmp_path))
    assert labels.classes == sorted(CLASSES_2018)
    assert labels.facts["ISIC2018_Task3_Training_Input/ISIC_0000003.jpg"] == Facts("AKIEC", "HAM_0000001", "train")
    assert labels.facts["ISIC2018_Task3_Validation_Input/ISIC_0000012.jpg"] == Facts("DF", None, "val")
    assert labels.facts["ISIC2018_Task3_Test_Input/ISIC_0000021.jpg"] == Facts("MEL", None, "test")
    assert (len(labels.facts), labels.rows, labels.unmatched, labels.missing) == (11, 11, [], "")


def test_isic_2017_without_its_superpixels(tmp_path):
    options = PrepareOptions(
        sources=[isic2017(tmp_path / "in")],
        out=tmp_path / "out",
        labels_preset="isic2017",
        workers=1,
        duplicates="keep",
    )
    summary = prepare(options)
    assert summary.other_files == {"*_superpixels.png": 7, ".csv": 6}
    assert ("other files", "7 x *_superpixels.png") in list(report_rows(options, summary))
    assert not summary.quarantined
    archive = Archive.open(tmp_path / "out")
    assert archive.classes == ("melanoma", "nevus", "seborrheic_keratosis")
    rows = archive.columns(np.arange(7), ["id", "label", "split"])
    names = names_of(options)
    labels = {
        names[id][-6:-4]: (archive.classes[label], split) for id, label, split in zip(*rows.values(), strict=True)
    }
    assert labels == {
        "00": ("nevus", "train"),
        "01": ("melanoma", "train"),
        "02": ("seborrheic_keratosis", "train"),
        "03": ("nevus", "train"),
        "10": ("melanoma", "val"),
        "20": ("seborrheic_keratosis", "test"),
        "21": ("nevus", "test"),
    }


def test_aptos_2019_can_be_scored_although_its_test_images_have_no_labels(tmp_path):
    source = aptos2019(tmp_path / "in")
    options = {"labels_preset": "aptos2019", "duplicates": "keep", "key": fixed_key(tmp_path / "key")}
    prepare(PrepareOptions(sources=[source], out=tmp_path / "out", workers=1, **options))
    archive = Archive.open(tmp_path / "out")
    assert (archive.classes, archive.num_samples, archive.labelled) == (("0", "1", "2", "3", "4"), 41, 40)
    rows = archive.columns(np.arange(41), ["label", "split"])
    assert (rows["label"][0], rows["split"][0]) == (-1, "test")
    assert rows["label"][1:].tolist() == [place % 5 for place in range(40)]
    split, _ = labelled_split(archive)
    assert sorted([*split.train, *split.val]) == list(range(1, 41))
    assert 3 <= len(split.val) <= 17
    assert (split.name, split.left_out) == ("random quarter", {"test": 1})
    with pytest.raises(UserError, match="samples to score"):
        labelled_split(archive, "test")


def test_folders_of_images_find_the_tables_beside_them(tmp_path):
    isic2018(tmp_path)
    sources = [tmp_path / f"ISIC2018_Task3_{part}_Input" for part in ("Training", "Test")]
    labels = read("isic2018", *sources)
    assert labels.facts["ISIC2018_Task3_Training_Input/ISIC_0000002.jpg"] == Facts("BCC", "HAM_0000001", "train")
    assert labels.facts["ISIC2018_Task3_Test_Input/ISIC_0000021.jpg"] == Facts("MEL", None, "test")
    assert labels.missing.startswith("ISIC2018_Task3_Validation_Input not found below ")


def test_images_of_another_task_do_not_get_in_the_way(tmp_path):
    isic2018(tmp_path)
    write_files(tmp_path, {"ISIC2018_Task1-2_Training_Input/ISIC_0000003.jpg": PICTURE})
    write_files(tmp_path, {"ISIC2018_Task1_Training_GroundTruth/ISIC_0000003_segmentation.png": PICTURE})
    labels = read("isic2018", tmp_path)
    assert labels.facts["ISIC2018_Task3_Training_Input/ISIC_0000003.jpg"].label == "AKIEC"
    assert len(labels.facts) == 11
    assert labels.unmatched == []


def test_images_may_all_lie_in_one_folder(tmp_path):
    whole = read("isic2018", isic2018(tmp_path / "apart"))
    isic2018(tmp_path / "together")
    training = tmp_path / "together/ISIC2018_Task3_Training_Input"
    for file in [*(tmp_path / "together").glob("ISIC2018_Task3_[VT]*_Input/*.jpg")]:
        file.rename(training / file.name)
    together = read("isic2018", tmp_path / "together")
    assert {Path(id).name: facts for id, facts in together.facts.items()} == {
        Path(id).name: facts for id, facts in whole.facts.items()
    }


def test_what_is_missing_of_val_and_test_is_told_with_its_downloads(tmp_path):
    source = isic2018(tmp_path, Training=[1, 2], Validation=[3])
    for path in source.glob("*Validation*/*.csv"):
        path.unlink()
    labels = read("isic2018", source)
    assert labels.missing == (
        "ISIC2018_Task3_Validation_GroundTruth.csv, ISIC2018_Task3_Test_GroundTruth.csv, ISIC2018_Task3_Test_Input not"
        f" found below {tmp_path}: download ISIC2018_Task3_Validation_GroundTruth.zip, "
        "ISIC2018_Task3_Test_GroundTruth.zip, ISIC2018_Task3_Test_Input.zip from"
        " https://challenge.isic-archive.com/data/#2018 and unpack there"
    )
    assert labels.facts["ISIC2018_Task3_Validation_Input/ISIC_0000003.jpg"] == Facts(None, None, "val")
    options = PrepareOptions(sources=[source], out=tmp_path.with_name("out"), labels_preset="isic2018")
    shown = report_rows(options, Summary(samples=3, seconds=1.0, missing=labels.missing))
    assert ("missing", labels.missing) in list(shown)


@pytest.mark.parametrize(
    ("preset", "gone", "message"),
    [
        (
            "isic2018",
            "*LesionGroupings.csv",
            r"LesionGroupings.csv not found below .*: download \S*LesionGroupings.csv from",
        ),
        (
            "isic2018",
            "*Training_GroundTruth/*.csv",
            "Training_GroundTruth.csv not .* download ISIC2018_Task3_Training_Gr",
        ),
        ("isic2018", "*Training_Input/*.jpg", "Training_Input not found .* download ISIC2018_Task3_Training_Input.zip"),
        (
            "isic2018",
            "*/*.jpg",
            "no images below .*; download ISIC2018_Task3_Training_Input.zip from https://challenge",
        ),
        (
            "isic2017",
            "*Training_Part3*",
            "Training_Part3_GroundTruth.csv from https://challenge.isic-archive.com/data/#2017",
        ),
        (
            "aptos2019",
            "train.csv",
            "download aptos2019-blindness-detection.zip from https://www.kaggle.com/competitions/",
        ),
    ],
)
def test_without_the_training_part_the_download_is_named(tmp_path, preset, gone, message):
    {"isic2018": isic2018, "isic2017": isic2017, "aptos2019": aptos2019}[preset](tmp_path / "in")
    for path in (tmp_path / "in").glob(gone):
        path.unlink()
    with pytest.raises(UserError, match=message) as error:
        prepare(PrepareOptions(sources=[tmp_path / "in"], out=tmp_path / "out", labels_preset=preset))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,MEL\n", "has no column 'NV', only: image, MEL"),
        ("image,{}\nISIC_0000001,1,1,0,0,0,0,0\n", "line 2: MEL=1, NV=1, .* names none of the classes MEL, NV, BCC"),
        ("image,{}\nISIC_0000001,0,0,0,0,0,0,0\n", "line 2: .* names none of the classes"),
        ("image,{}\nISIC_0000001,yes,0,0,0,0,0,0\n", "line 2: MEL=yes, .* names none of the classes"),
        ("image,{}\nISIC_0000011,1,0,0,0,0,0,0\n", "the tables of train and of val both name .*ISIC_0000011.jpg"),
    ],
)
def test_tables_that_are_not_the_challenges(tmp_path, table, message):
    truth = "ISIC2018_Task3_Training_GroundTruth"
    isic2018(tmp_path)
    (tmp_path / truth / f"{truth}.csv").write_text(table.format(",".join(CLASSES_2018)))
    with pytest.raises(UserError, match=message):
        read("isic2018", tmp_path)


def test_a_table_may_be_there_twice_but_not_in_two_versions(tmp_path):
    truth = "ISIC2018_Task3_Training_GroundTruth"
    table = isic2018(tmp_path) / truth / f"{truth}.csv"
    write_files(tmp_path, {f"{truth}.csv": table.read_bytes()})
    assert len(read("isic2018", tmp_path).facts) == 11
    table.write_text(table.read_text() + "\n")
    with pytest.raises(
        UserError, match=r"GroundTruth.csv and .*GroundTruth.csv differ: leave the one of the challenge"
    ):
        read("isic2018", tmp_path)
