"""`--split`: patients and near-duplicates stay whole, and what is drawn stays as it is when an archive grows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.verification import verify
from fastfgssl.evaluation.split import split_samples
from fastfgssl.runtime.errors import UserError
from helpers.dicom import dicom
from helpers.images import encode, fixed_key, names_of, write_files


def blotches(seed: int, side: int = 40) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def pictures(numbers: range, folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{i:03d}.png": encode(blotches(i), "PNG") for i in numbers}


def table(numbers: range) -> bytes:
    """Three classes, one of them rare; patients of one to three pictures."""
    rows = [f"{i:03d}.png,{'mole' if i % 10 else 'scar' if i % 20 else 'burn'},patient {i * 2 // 5}" for i in numbers]
    return "\n".join(["image,label,patient", *rows]).encode()


def make(out: Path, *sources: Path, **options: object) -> PrepareOptions:
    key = fixed_key(out.parent / "key")
    asked = PrepareOptions(sources=sources, out=out, key=key, **{"split": "0.6/0.2/0.2", "workers": 1} | options)
    asked_summary[asked.out] = prepare(asked)
    assert verify(Archive.open(out)) == []
    return asked


asked_summary: dict[Path, object] = {}


def splits(options: PrepareOptions) -> dict[str, str]:
    """By the name of the file."""
    archive, names = Archive.open(options.out), names_of(options)
    rows = archive.columns(np.arange(archive.num_samples), ("id", "split"))
    return {Path(names[id]).name: split for id, split in zip(rows["id"], rows["split"], strict=True)}


def of_groups(options: PrepareOptions) -> dict[int, set[str]]:
    """The splits of each group."""
    archive = Archive.open(options.out)
    rows = archive.columns(np.arange(archive.num_samples), ("group", "split"))
    found = defaultdict(set)
    for group, split in zip(rows["group"].tolist(), rows["split"], strict=True):
        found[group].add(split)
    return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    return write_files(
        tmp_path_factory.mktemp("labelled"), pictures(range(100), "data/") | {"t.csv": table(range(100))}
    )


@pytest.fixture(scope="module")
def drawn(labelled) -> PrepareOptions:
    return make(labelled / "archive", labelled / "data", labels=labelled / "t.csv")


def test_shares_classes_and_patients(drawn):
    archive = Archive.open(drawn.out)
    rows = archive.columns(np.arange(100), ("label", "split"))
    counts = {
        split: np.bincount(rows["label"][rows["split"] == split], minlength=3) for split in ("train", "val", "test")
    }
    for split, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        assert abs(counts[split].sum() - 100 * share) <= 3  # the largest patient
        for label, of_class in enumerate((5, 90, 5)):
            assert abs(counts[split][label] - of_class * share) <= 3
        assert counts[split][0], "a rare class is in each split"
    assert all(len(found) == 1 for found in of_groups(drawn).values())
    told = dict(report_rows(drawn, asked_summary[drawn.out]))["splits"]
    assert told == ", ".join(f"{split} {counts[split].sum()}" for split in counts) + " images, drawn by group"
    assert len(split_samples(archive).val) == counts["val"].sum()


def test_the_order_of_sources_and_the_parts_do_not_matter(labelled, drawn, tmp_path):
    data = labelled / "data"
    files = sorted(data.iterdir(), reverse=True)
    shuffled = make(tmp_path / "a", *files, labels=labelled / "t.csv")
    assert splits(shuffled) == splits(drawn)
    for part in ("2/2", "1/2"):
        prepare(PrepareOptions(sources=[data], out=tmp_path / "b", split="0.6/0.2/0.2", workers=1, part=part,
                               labels=labelled / "t.csv", key=tmp_path / "key"))  # fmt: skip
    in_parts = make(tmp_path / "b", data, labels=labelled / "t.csv")
    assert (in_parts.out / "samples.arrow").read_bytes() == (drawn.out / "samples.arrow").read_bytes()
    other = make(tmp_path / "c", data, labels=labelled / "t.csv", seed=1)
    assert splits(other) != splits(drawn)


def test_what_is_there_keeps_its_split_and_a_patient_too(labelled, tmp_path):
    data = write_files(tmp_path / "data", pictures(range(50)))
    labels = write_files(tmp_path, {"t.csv": table(range(100))}) / "t.csv"
    before = splits(make(tmp_path / "archive", data, labels=labels))
    write_files(data, pictures(range(50, 100)))
    asked = make(tmp_path / "archive", data, labels=labels)
    after = splits(asked)
    assert {name: after[name] for name in before} == before
    assert len(after) == 100
    assert all(len(found) == 1 for found in of_groups(asked).values())
    counts = np.unique(list(after.values()), return_counts=True)[1]
    assert np.abs(counts - [20, 60, 20]).max() <= 3
    with pytest.raises(UserError, match=r"was made with --split 0\.6/0\.2/0\.2: add to it in the same way"):
        make(tmp_path / "archive", data, labels=labels, split=None)
    with pytest.raises(UserError, match="was made with --seed 0: add to it in the same way"):
        make(tmp_path / "archive", data, labels=labels, seed=2)


def test_dicom_patients_without_labels_are_whole(tmp_path):
    def named(patient: int) -> dict[str, str]:
        """What a header tells; where the patient is taken out, the study still holds slices together."""
        return {"PatientID": f"P{patient}"} if patient < 4 else {"PatientID": "", "StudyInstanceUID": f"1.2.{patient}"}

    scans = {
        f"{patient}{i}.dcm": dicom(np.asarray(blotches(10 * patient + i).convert("L")), **named(patient))
        for patient in range(8)
        for i in range(3)
    }
    asked = make(tmp_path / "archive", write_files(tmp_path / "data", scans), split="0.5/0.5")
    found = of_groups(asked)
    assert len(found) == 8
    assert all(len(of_group) == 1 for of_group in found.values())
    assert sorted(splits(asked).values()) == ["test"] * 12 + ["train"] * 12


def test_what_a_table_says_of_some_images_of_a_patient_holds_for_the_others(tmp_path):
    scans = {
        f"{patient}{i}.dcm": dicom(np.asarray(blotches(10 * patient + i).convert("L")), PatientID=f"P{patient}")
        for patient in range(2)
        for i in range(4)
    }
    labels = write_files(tmp_path, {"t.csv": b"image,label,patient\n02,a,one\n03,a,other\n"}) / "t.csv"
    asked = make(tmp_path / "archive", write_files(tmp_path / "data", scans), labels=labels)
    archive, names = Archive.open(asked.out), names_of(asked)
    columns = archive.columns(np.arange(8), ("id", "group"))
    group = {Path(names[id]).name: group for id, group in zip(columns["id"], columns["group"], strict=True)}
    assert group["00.dcm"] == group["01.dcm"] == group["02.dcm"]
    assert len({group[f"1{i}.dcm"] for i in range(4)} | {group["02.dcm"], group["03.dcm"]}) == 3


def test_near_duplicates_are_whole_and_follow_a_group_that_is_there(tmp_path):
    """New pictures of patients 0 and 1 that are nearly the same, and one of nobody: all go with what is there."""
    data = write_files(tmp_path / "data", pictures(range(12)))
    rows = "".join(f"{i:03d},a,patient {i}\n" for i in range(12))
    rows += "new 0,a,patient 3\nnew 1,a,patient 99\n"
    labels = write_files(tmp_path, {"t.csv": f"image,label,patient\n{rows}".encode()}) / "t.csv"
    before = splits(make(tmp_path / "archive", data, labels=labels, near_duplicates="group"))
    copies = {f"new {i}.png": encode(blotches(77, 60 + 10 * i), "PNG") for i in range(3)}
    asked = make(tmp_path / "archive", write_files(data, copies), labels=labels, near_duplicates="group")
    after = splits(asked)
    assert {after[name] for name in copies} == {before["003.png"]}
    archive, names = Archive.open(asked.out), names_of(asked)
    columns = archive.columns(np.arange(15), ("id", "group"))
    groups = {Path(names[id]).name: group for id, group in zip(columns["id"], columns["group"], strict=True)}
    assert {groups[name] for name in copies} == {groups["003.png"]}


def test_by_image_divides_groups_but_not_copies(labelled, tmp_path):
    alone = make(tmp_path / "a", labelled / "data", labels=labelled / "t.csv", by="image")
    assert max(len(found) for found in of_groups(alone).values()) > 1
    twice = pictures(range(30)) | {f"copy of {name}": data for name, data in pictures(range(30)).items()}
    asked = make(tmp_path / "b", write_files(tmp_path / "data", twice), duplicates="keep", by="image")
    found = splits(asked)
    assert len(found) == 60
    assert all(found[f"{i:03d}.png"] == found[f"copy of {i:03d}.png"] for i in range(30))


def test_folders_of_splits_are_not_drawn_over(tmp_path):
    files = {f"{split}/{name}/{i}.png": encode(blotches(i), "PNG")
             for i, (split, name) in enumerate([("train", "a"), ("train", "b"), ("val", "a")])}  # fmt: skip
    with pytest.raises(
        UserError, match=r"the folders are those of splits \(train, val\), and --split would draw others"
    ):
        make(tmp_path / "archive", write_files(tmp_path / "data", files), labels_from="folders")
