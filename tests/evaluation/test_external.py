"""A fine-tuned network on another hospital's archive, all of whose labelled images are unseen."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.commands import evaluate as evaluate_command
from fastfgssl.evaluation.checkpoint import evaluate
from fastfgssl.evaluation.near_duplicates import Thumbnails, find_overlap
from fastfgssl.evaluation.scores import floor_scores
from fastfgssl.evaluation.split import labelled_split, scoring_samples, split_samples
from fastfgssl.evaluation.training_samples import training_samples
from fastfgssl.export.score_tables import score_lines
from fastfgssl.runtime.errors import UserError
from helpers.checkpoints import save_untrained
from helpers.command import run_here
from helpers.images import files_of, fixed_key

NEW = 12  # images that the first hospital has not; two more are of it
TEST = 6  # of them are of a split `test`; nothing names one to train on


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def theirs(phantom_folder, tmp_path_factory) -> Path:
    """Twelve images of another hospital, two of them without a label, and two that the network has learned from.

    No image is of the first of the network's classes, so that others have other numbers than in the network. Both
    hospitals' key is the same: one patient was in both.
    """
    folder = tmp_path_factory.mktemp("theirs")
    write_phantoms(folder / "source", NEW, seed=2, width=48, height=40, workers=1)
    learned = [row for row in rows_of(phantom_folder) if row["split"] == "fit"]
    first, *others = sorted({row["label"] for row in learned})
    known = [row for row in learned if row["label"] != first][:2]
    for place, row in enumerate(known):
        shutil.copy(phantom_folder / row["image"], folder / "source" / "images" / f"known {place}.jpg")
    lines = ["image,label,group,split"]
    for place in range(NEW - 2):
        split = "test" if place < TEST else ""
        lines.append(f"{place:06d}.jpg,{others[place % len(others)]},theirs {place // 2},{split}")
    lines.append(f"{NEW - 2:06d}.jpg,,,spare")
    lines += [f"known 0.jpg,{known[0]['label']},{known[0]['group']},", f"known 1.jpg,{known[1]['label']},,"]
    (folder / "labels.csv").write_text("\n".join(lines))
    options = {"labels": folder / "labels.csv", "key": fixed_key(folder / "key"), "workers": 1}
    prepare(PrepareOptions(sources=[folder / "source" / "images"], out=folder / "archive", **options))
    return folder / "archive"


@pytest.fixture
def make_checkpoint(make_config, archive_path, tmp_path):
    """A checkpoint of a network that was, so it says, fine-tuned on the archive of `archive_path`."""

    def make(classes: tuple[str, ...] = (), **changes) -> Path:
        ours = Archive.open(archive_path)
        config = make_config(objective="supervised.plain", **changes)
        samples = training_samples(ours, replace(config.data, path=str(archive_path)), seed=config.seed)
        counts = np.bincount(samples.labels[samples.train], minlength=len(ours.classes)).tolist()
        supervised = replace(config.supervised, classes=classes or ours.classes, class_counts=tuple(counts))
        return save_untrained(replace(config, supervised=supervised), tmp_path / "run", archive=ours.fingerprint)

    return make


def test_all_that_have_a_label_score_and_floors_are_of_what_was_learned(make_checkpoint, archive_path, theirs):
    report = evaluate(make_checkpoint(), theirs, "finetuned", split="all", device="cpu")
    ours, other = Archive.open(archive_path), Archive.open(theirs)
    assert (report.split, report.val_samples, report.left_out) == ("all", NEW, {"no label": 2})
    assert report.val_groups == (NEW - 2) // 2 + 2
    assert (report.archive, report.fit_archive) == (other.fingerprint, ours.fingerprint)
    split = split_samples(ours)
    assert (report.fit_samples, report.fit_groups) == (len(split.train), len(split.train))
    # by name: in their own archive classes have other numbers
    assert report.classes == ours.classes
    assert other.classes == ours.classes[1:]
    files = files_of(theirs)
    ids = other.columns(report.predictions.ids, ("id",))["id"]
    written = {row["image"]: row["label"] for row in rows_of(theirs.parent)}
    assert [ours.classes[label] for label in report.predictions.truth] == [written[files[id].name] for id in ids]
    labels = ours.columns(split.train, ("label",))["label"]
    assert report.floors == {"majority": floor_scores(report.predictions.truth, labels, classes=ours.classes)}
    assert {"sum", "colour"} < report.results.keys()
    missing = report.results["sum"]["by_class"][ours.classes[0]]
    assert (missing["images"], missing["recall"], missing["auroc"]) == (0, None, None)
    # the two copies, one of them of a patient that both know
    assert (report.overlap.groups, report.overlap.identical_files, report.overlap.near_duplicates) == (1, 2, 2)
    for scoring, training, _ in report.overlap.examples:
        assert files[scoring].read_bytes() == files_of(archive_path)[training].read_bytes()


def test_images_of_no_group_share_none(theirs):
    archive = Archive.open(theirs)
    groups = archive.columns(np.arange(archive.num_samples), ("group",))["group"]
    of_a_patient = np.flatnonzero(groups == groups[groups >= 0][0])
    for ids, shared in ((np.flatnonzero(groups < 0), 0), (of_a_patient, 1)):
        sides = Thumbnails(archive), Thumbnails(archive)
        for side, sample in zip(sides, ids, strict=False):
            side.add(np.array([sample]), torch.rand(1, 3, 32, 32))
        assert find_overlap(*sides).groups == shared


def test_where_the_archive_of_the_fine_tuning_is_not_there_it_is_said(make_checkpoint, archive_path, theirs, caplog):
    checkpoint = make_checkpoint(data__path="/nowhere/archive")
    alone = evaluate(checkpoint, theirs, "finetuned", split="all", device="cpu")
    (told,) = caplog.messages[:1]
    assert "unless --trained-on names the archive of the fine-tuning: /nowhere/archive is not an archive" in told
    assert alone.overlap is None
    assert "colour" not in alone.results
    named = evaluate(checkpoint, theirs, "finetuned", split="all", trained_on=archive_path, device="cpu")
    assert named.overlap.identical_files == 2
    assert alone.floors == named.floors
    assert (alone.fit_samples, alone.fit_archive) == (named.fit_samples, named.fit_archive)
    assert alone.results["sum"] == named.results["sum"]
    with pytest.raises(UserError, match="is not, or no longer, the archive that the network was fine-tuned on"):
        evaluate(checkpoint, theirs, "finetuned", split="all", trained_on=theirs, device="cpu")


def test_the_tool_and_the_card_say_which_images_scored(make_checkpoint, theirs, tmp_path, capsys):
    file = tmp_path / "scores.json"
    words = ("--checkpoint", make_checkpoint(), "--data", theirs, "--protocol", "finetuned", "--split", "all")
    assert run_here(evaluate_command.main, *words, "--json", file, "--device", "cpu") == 0
    out = " ".join(capsys.readouterr().out.split())
    record = json.loads(file.read_text())
    assert record["split"] == "all"
    assert f"{NEW} images (split: all) scored, {record['fit_samples']} to train" in out
    assert f"no image of class {record['classes'][0]}: means over classes are of the others" in out
    assert "shared with the images to train, of another archive: 1 groups, 2 identical files" in out
    assert "left out: no label 2" in out
    card = "\n".join(score_lines(record))
    assert f"scored on split all, {NEW} images" in card
    assert f"{record['fit_samples']} images of another archive to train on" in card


def test_classes_that_the_network_does_not_know_are_named(theirs):
    archive = Archive.open(theirs)
    first, *others = archive.classes
    images = (archive.columns(np.arange(archive.num_samples), ("label",))["label"] == 0).sum()
    with pytest.raises(UserError, match=rf"does not know class {first} \({images} images\), it tells") as caught:
        scoring_samples(archive, others, "all")
    assert "\n" not in str(caught.value)
    _, labels = scoring_samples(archive, ["new", *reversed(archive.classes)], "all")
    own = archive.columns(np.arange(archive.num_samples), ("label",))["label"]
    assert (labels[own >= 0] == len(archive.classes) - own[own >= 0]).all()
    assert (labels[own < 0] == -1).all()


def test_their_own_splits_need_none_to_train_on(archive_path, theirs):
    other = Archive.open(theirs)
    split, _ = scoring_samples(other, other.classes)
    assert (split.name, len(split.val), len(split.train)) == ("test", TEST, 0)
    assert split.left_out == {"no split": NEW + 1 - TEST, "spare": 1}
    with pytest.raises(UserError, match="it must name samples to train on"):
        labelled_split(other)
    archive = Archive.open(archive_path)
    val = split_samples(archive, "val")
    split, _ = scoring_samples(archive, archive.classes)
    assert (split.val.tolist(), len(split.train)) == (val.val.tolist(), 0)
    assert split.left_out == {"train": len(val.train)}
    everything, _ = scoring_samples(archive, archive.classes, "all")
    assert everything.val.tolist() == list(range(archive.num_samples))
    with pytest.raises(UserError, match=r"it must name samples that score .*, or take --split all"):
        scoring_samples(archive, archive.classes, "test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"protocol": "knn"}, "split all leaves knn nothing to learn from"),
        ({"protocol": "linear"}, "split all leaves linear nothing to learn from"),
        ({"protocol": "matching", "batch_statistics": "recomputed"}, "split all leaves no training split"),
        ({"protocol": "finetuned"}, r"the network was fine-tuned on \d+ of the 84 images of split all"),
        ({"protocol": "matching", "trained_on": "x"}, "trained_on = 'x': must be left out for protocols other"),
    ],
)
def test_what_cannot_score_all_is_refused(make_checkpoint, archive_path, words, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(make_checkpoint(), archive_path, split="all", device="cpu", **words)
    assert "\n" not in str(caught.value)


def test_matching_takes_all_images_labelled_or_not(make_checkpoint, theirs):
    report = evaluate(make_checkpoint(), theirs, "matching", split="all", device="cpu")
    assert (report.split, report.val_samples, report.left_out) == ("all", NEW + 2, {})
    assert report.fit_archive == ""
