"""Evaluation where there is little, or something is wrong: recomputed batch statistics, small archives, checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.config.files import config_to_values
from fastfgssl.evaluation.batch_statistics import recompute_batch_statistics
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import build_untrained, load_pretrained
from fastfgssl.evaluation.protocols import run_protocol
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import check_writable
from fastfgssl.training.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def config(make_config):
    return make_config()


def extractor(config, archive, batch_size=16) -> FeatureExtractor:
    return FeatureExtractor(build_untrained(config, 0), config, archive, CPU, batch_size)


def statistics(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def test_statistics_are_pooled_over_batches_of_any_size(config):
    """The second image is far from the others: averaging variances within batches would not see it."""
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1] += 10
    model = build_untrained(config, 0)
    stem = model.backbone
    outputs = stem.conv1(images).detach().transpose(0, 1).flatten(1)
    for sizes in ([9], [2, 7], [4, 2, 3]):
        recompute_batch_statistics(model, images.split(sizes))
        torch.testing.assert_close(stem.bn1.running_mean, outputs.mean(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stem.bn1.running_var, outputs.var(dim=1), rtol=1e-4, atol=1e-5)
    assert stem.bn1.momentum == 0.1
    assert not model.training
    assert not stem.bn1._forward_pre_hooks


def test_recomputed_statistics_depend_on_the_samples_and_the_seed_alone(config, archive_path):
    archive = Archive.open(archive_path)
    found = []
    for batch_size, ids, seed in [(1, range(65), 0), (64, range(65), 0), (64, range(65), 1), (64, range(19), 0)]:
        subject = extractor(config, archive, batch_size)
        subject.recompute_batch_statistics(np.array(ids), seed=seed)
        found.append(statistics(subject._model))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=0)
    name = "backbone.bn1.running_mean"
    torch.testing.assert_close(found[1][name], found[2][name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1][name], found[3][name], rtol=1e-3)


def test_recomputed_statistics_are_of_a_random_part(config, archive_path, monkeypatch):
    monkeypatch.setattr("fastfgssl.evaluation.features._RECALIBRATION_IMAGES", 30)
    monkeypatch.setattr("fastfgssl.evaluation.features._RECALIBRATION_BATCH", 8)
    subject, drawn = extractor(config, Archive.open(archive_path)), []
    monkeypatch.setattr(
        subject, "_images_to_recalibrate", lambda parts: drawn.extend(parts) or [torch.randn(2, 3, 32, 32)]
    )
    subject.recompute_batch_statistics(np.arange(84), seed=0)
    assert [len(part) for part in drawn] == [10, 10, 10]
    ids = np.concatenate(drawn)
    assert len(set(ids)) == 30
    assert ids.max() > 30
    assert (np.diff(ids) < 0).any()


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_of_fewer_than_two_images_are_refused(config, archive_path, count):
    with pytest.raises(UserError, match="recomputed batch statistics need two training images or more"):
        extractor(config, Archive.open(archive_path)).recompute_batch_statistics(np.arange(count), seed=0)


@pytest.mark.parametrize("scoring", [0, 1])
def test_matching_needs_two_images(config, phantom_folder, tmp_path, scoring):
    if scoring:
        rows = ["image,label,split", "000000.jpg,a,fit", "000001.jpg,a,fit", "000002.jpg,a,val"]
    else:
        rows = ["image,label", *(f"{i:06d}.jpg,a" for i in range(3))]  # a quarter of which happens to be none
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    sources = [phantom_folder / "images" / f"{i:06d}.jpg" for i in range(3)]
    prepare(PrepareOptions(sources=sources, out=tmp_path / "archive", labels=tmp_path / "labels.csv", workers=1))
    archive = Archive.open(tmp_path / "archive")
    with pytest.raises(UserError, match="matching tells images apart and needs two or more that score"):
        run_protocol(extractor(config, archive), archive, "matching")


def checkpoint(config, folder, changes=()):
    model = build_untrained(config, 0).state_dict()
    state = {"step": 1, "model": model, "optimizer": {}, "scaler": {}, "objective": {}}
    state |= {"config": config_to_values(config), "archive": "digest"}
    return save_checkpoint(folder, state | dict(changes), keep=1)


def test_a_whole_checkpoint_is_loaded(config, tmp_path):
    path = checkpoint(config, tmp_path)
    assert load_pretrained(path).step == 1
    assert load_checkpoint(path)["archive"] == "digest"


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("config", {"model.embedding_dim": 25}, "its weights are not those of the network that its configuration"),
        ("config", {"model.unknown": 1}, "unknown key 'model.unknown'"),
        ("model", {"backbone.conv1.weight": 3}, "its weights are not those of the network"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_one_short_line(config, tmp_path, entry, change, message):
    whole = load_checkpoint(checkpoint(config, tmp_path))
    path = checkpoint(config, tmp_path, {entry: whole[entry] | change})
    with pytest.raises(UserError) as error:
        load_pretrained(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert len(str(error.value).replace(str(path), "").splitlines()) == 1


def test_asking_whether_a_file_can_be_written_leaves_it_as_it_was(tmp_path):
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "kept"
    with pytest.raises(UserError, match="Is a directory"):
        check_writable(tmp_path)
