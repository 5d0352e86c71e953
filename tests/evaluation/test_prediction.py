"""Probabilities of the images of a folder, and of an archive, in a table."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.images.decoded import picture_of
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.outcome import Unusable
from fastfgssl.commands.predict import main
from fastfgssl.evaluation.prediction import predict
from fastfgssl.evaluation.pretrained import load
from fastfgssl.runtime.errors import UserError
from helpers.checkpoints import CLASSES, CLASSIFIER, save_untrained
from helpers.command import run_here
from helpers.damage import damage_sample
from helpers.dicom import dataset, dicom, encoded
from helpers.images import RGB, encode, files_of, gradient_16_bit, with_orientation, write_files


@pytest.fixture
def checkpoint(make_config, tmp_path):
    return save_untrained(make_config(**CLASSIFIER | {"objective": "supervised.progressive"}), tmp_path / "run")


def read(file) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def probabilities(row) -> list[float]:
    return [float(row[f"p_{name}"]) for name in CLASSES]


FILES = {
    "a/colour.jpg": encode(RGB, "JPEG"),
    "a/turned.png": with_orientation(RGB, 6, "PNG"),
    "b/cut.jpg": encode(RGB, "JPEG")[:300],
    "b/gray.png": encode(gradient_16_bit(), "PNG"),
    "b/empty.png": b"",
    "b/notes.jpg": b"not an image",
    "notes.txt": b"no image by its name",
}


def test_a_folder_has_a_row_for_each_image(checkpoint, tmp_path):
    folder = write_files(tmp_path / "images", FILES)
    (folder / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = predict(checkpoint, folder, tmp_path / "out.csv", device="cpu", batch_size=2)
    rows = {row["image"]: row for row in read(tmp_path / "out.csv")}
    assert list(rows) == [
        "a/colour.jpg",
        "a/turned.png",
        "b/cut.jpg",
        "b/empty.png",
        "b/gone.png",
        "b/gray.png",
        "b/notes.jpg",
    ]
    assert set(found.problems) == {"b/cut.jpg", "b/empty.png", "b/gone.png", "b/notes.jpg"}
    assert found.images.total() == 3
    assert list(found.images) == list(CLASSES)
    classifier = load(checkpoint)
    for name, row in rows.items():
        if name in found.problems:
            assert (row["predicted"], row["problem"]) == ("", found.problems[name])
            assert row["problem"]
            continue
        picture = Image.open(folder / name)
        if picture.mode == "I;16":  # through its levels, of which such an image says nothing
            picture = picture_of((folder / name).read_bytes(), max_pixels=10**6)
        image = classifier.transform(picture)
        with torch.no_grad():
            expected = classifier(image[None]).softmax(dim=1)[0]
        np.testing.assert_allclose(probabilities(row), expected, atol=1e-4)
        assert row["predicted"] == CLASSES[int(expected.argmax())]
        assert row["problem"] == ""
    assert rows["b/empty.png"]["problem"] == "empty file"


def test_an_archive_gives_what_its_folder_gives(checkpoint, archive_path, phantom_folder, tmp_path):
    predict(checkpoint, archive_path, tmp_path / "archive.csv", device="cpu", batch_size=16)
    predict(checkpoint, phantom_folder, tmp_path / "folder.csv", device="cpu")
    of_archive, of_folder = ({row["image"]: row for row in read(tmp_path / f"{n}.csv")} for n in ("archive", "folder"))
    assert list(of_archive) == Archive.open(archive_path).columns(np.arange(84), ("id",))["id"].tolist()
    files = files_of(archive_path)
    of_archive = {str(files[id].relative_to(phantom_folder)): row for id, row in of_archive.items()}
    assert of_archive.keys() == of_folder.keys()
    ours, theirs = (np.array([probabilities(table[name]) for name in of_archive]) for table in (of_archive, of_folder))
    # decoders and resizes differ by a grey level here and there: little beside what tells images apart
    assert (np.abs(ours - theirs).max(axis=0) < 0.1 * np.ptp(ours, axis=0)).all()


def test_a_sample_that_was_damaged_since_is_listed(checkpoint, archive_path, tmp_path):
    shutil.copytree(archive_path, tmp_path / "archive")
    archive = Archive.open(tmp_path / "archive")
    damage_sample(archive, 5)
    name = archive.columns(np.array([5]), ("id",))["id"][0]
    found = predict(checkpoint, archive.path, tmp_path / "out.csv", device="cpu", batch_size=4)
    assert list(found.problems) == [name]
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 84
    assert (rows[5]["image"], rows[5]["predicted"]) == (name, "")
    assert "prepare --verify" in rows[5]["problem"]


def test_flips_are_averaged(checkpoint, tmp_path):
    image = encode(RGB, "PNG")
    mirrored = encode(RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG")
    folder = write_files(tmp_path / "images", {"one.png": image, "two.png": mirrored})
    plain, flips = (
        predict(checkpoint, folder, tmp_path / f"{name}.csv", device="cpu", flips=name == "flips")
        and [probabilities(row) for row in read(tmp_path / f"{name}.csv")]
        for name in ("plain", "flips")
    )
    assert not np.allclose(plain[0], plain[1], atol=1e-4)
    np.testing.assert_allclose(flips[0], flips[1], atol=1e-4)


def test_a_classifier_is_loaded_with_its_classes(checkpoint):
    classifier = load(checkpoint)
    assert classifier.classes == CLASSES
    assert not any(part.training for part in classifier.modules())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert classifier(images).shape == (2, 3)
        torch.testing.assert_close(classifier.probabilities(images).sum(dim=1), torch.ones(2))
        assert classifier.backbone(images).shape == (2, classifier.backbone.num_features)


def test_the_command_counts_and_names_what_it_could_not_decode(checkpoint, tmp_path, capsys):
    folder = write_files(tmp_path / "images", FILES | {f"c/{n}.png": b"" for n in range(9)})
    words = ("--checkpoint", checkpoint, "--data", folder, "--device", "cpu")
    assert run_here(main, *words, "--out", tmp_path / "out.csv") == 0
    told, beside = capsys.readouterr()
    assert beside.startswith("predicting on the CPU")
    assert all(name in told for name in CLASSES)
    assert "could not be decoded: b/empty.png: empty file" in told
    assert "and 7 more" in told
    assert run_here(main, *words, "--out", tmp_path / "images") == 2
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [("nowhere", "the source .*nowhere does not exist"), ("empty", "no images below .*empty, nor any other files")],
)
def test_data_without_images_is_a_line(checkpoint, tmp_path, data, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        predict(checkpoint, tmp_path / data, tmp_path / "out.csv", device="cpu")
    assert not (tmp_path / "out.csv").exists()


def test_a_network_without_classes_predicts_nothing(make_config, tmp_path):
    checkpoint = save_untrained(make_config(), tmp_path)
    with pytest.raises(UserError, match="tells no classes apart: it was pretrained without labels; fine-tune it first"):
        predict(checkpoint, tmp_path, tmp_path / "out.csv", device="cpu")


def test_a_deep_picture_and_a_dicom_file_are_seen_as_training_sees_them(tmp_path):
    levels = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    (tmp_path / "scan.dcm").write_bytes(dicom(levels, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096))
    Image.fromarray(levels).save(tmp_path / "scan.png")
    for name in ("scan.png", "scan.dcm"):
        seen = np.asarray(picture_of((tmp_path / name).read_bytes(), max_pixels=10**6))
        np.testing.assert_allclose(seen, levels / 4095 * 255, atol=1)
    report = dataset(b"", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    del report.PixelData
    with pytest.raises(Unusable, match=r"^no image: DICOM"):
        picture_of(encoded(report), max_pixels=10**6)
