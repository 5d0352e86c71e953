"""Scores: each on data whose answer is known, then the tool on a real checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.commands import evaluate as evaluate_command
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.linear_probe import linear_probe
from fastfgssl.evaluation.matching import matching_accuracy
from fastfgssl.evaluation.pretrained import build_untrained, load_pretrained
from fastfgssl.evaluation.protocols import run_protocol
from fastfgssl.evaluation.scores import balanced_accuracy
from fastfgssl.evaluation.split import groups_of, labelled_split, split_samples
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints
from helpers.command import run_here
from helpers.images import fixed_key

CPU = torch.device("cpu")


def test_matching_finds_what_is_there():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2500, 16, generator=generator)
    assert matching_accuracy(3 * keys, keys) == 1
    assert matching_accuracy(torch.randn(2500, 16, generator=generator), keys) < 0.005
    half = torch.cat([keys[:1250], torch.randn(1250, 16, generator=generator)])
    assert matching_accuracy(half, keys) == pytest.approx(0.5, abs=0.01)


def test_features_that_are_all_alike_match_nothing():
    assert matching_accuracy(torch.ones(10, 4), torch.ones(10, 4)) == 0


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three directions with noise, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return 2 * torch.eye(8)[labels] + torch.randn(count, 8, generator=generator), labels


def test_knn_gives_the_weighted_votes_of_sklearn():
    (train, labels), (queries, _) = clusters(500, 0), clusters(300, 1)
    ours = knn_probabilities(train, labels, queries, num_classes=3, k=20, temperature=0.07)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    np.testing.assert_allclose(ours, theirs.fit(train, labels).predict_proba(queries), atol=1e-5)


def test_knn_with_fewer_samples_than_neighbours():
    train = torch.eye(3)
    assert knn_probabilities(train, torch.arange(3), train + 0.1, num_classes=3).argmax(1).tolist() == [0, 1, 2]


def test_the_probe_learns_what_is_linear_and_chooses_its_strength_without_the_queries():
    (train, labels), (queries, truth) = clusters(400, 0), clusters(400, 1)
    groups = np.arange(400) // 2
    probe = linear_probe(train, labels.numpy(), groups, queries)
    assert balanced_accuracy_score(truth, probe.predictions) > 0.7
    noise = linear_probe(train, labels.numpy()[::-1].copy(), groups, queries)
    assert balanced_accuracy_score(truth, noise.predictions) < 0.5
    alone = linear_probe(train, labels.numpy(), groups, queries[:7])
    assert alone.strength == probe.strength
    np.testing.assert_array_equal(alone.predictions, probe.predictions[:7])


def test_a_class_of_one_image_is_no_warning():
    features = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    labels = np.array([0] * 6 + [1] * 6 + [2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear_probe(features, labels, np.arange(13), features)
    assert balanced_accuracy(labels, probe.predictions) == balanced_accuracy_score(labels, probe.predictions)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [([0, 0, 1, 1], [0, 1, 2, 3]), ([0] * 6 + [1] * 6, [0] * 6 + [1] * 6), ([0, 0, 0], [0, 1, 2])],
)
def test_too_few_groups_for_the_probe_are_one_clear_line(labels, groups):
    features = torch.zeros(len(labels), 2)
    with pytest.raises(UserError, match="3-fold cross-validation needs 3 groups"):
        linear_probe(features, np.array(labels), np.array(groups), features)


def test_the_archives_own_split_is_used(archive_path):
    archive = Archive.open(archive_path)
    split = split_samples(archive)
    assert len(split.train) + len(split.val) == 84
    names = archive.columns(split.val, ("split",))["split"]
    assert set(names) == {"val"}


def prepare_with(folder: Path, tmp_path: Path, rows: list[str]) -> Archive:
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options = {"labels": tmp_path / "labels.csv", "key": fixed_key(tmp_path / "key")}
    prepare(PrepareOptions(sources=[folder / "images"], out=tmp_path / "archive", **options))
    return Archive.open(tmp_path / "archive")


def test_without_a_split_groups_are_kept_together(phantom_folder, tmp_path):
    rows = ["image,label,group"] + [f"{i:06d}.jpg,{'ab'[i % 2]},{i // 4}" for i in range(80)]
    archive = prepare_with(phantom_folder, tmp_path, rows)
    split = split_samples(archive)
    assert sorted([*split.train, *split.val]) == list(range(84))
    assert 8 <= len(split.val) <= 34
    groups = groups_of(archive, np.arange(84))
    assert not set(groups[split.train]) & set(groups[split.val])
    assert len(set(groups[80:])) == 4  # images without a group are groups of their own
    labelled, labels = labelled_split(archive)
    assert (labels[80:] == -1).all()
    assert sorted([*labelled.train, *labelled.val]) == list(range(80))


def test_one_named_split_scores_and_the_rest_is_told(phantom_folder, tmp_path):
    names = ["Train", "VAL", "test", "spare", "Validation", "TRAINING", ""]
    rows = ["image,label,split"] + [f"{i:06d}.jpg,{'ab'[i % 2]},{name}" for i, name in enumerate(names)]
    archive = prepare_with(phantom_folder, tmp_path, rows)
    val, test = (split_samples(archive, scoring) for scoring in (None, "test"))
    assert (len(val.train), len(val.val), val.name) == (2, 2, "val")
    assert val.left_out == {"no split": 78, "spare": 1, "test": 1}
    assert (len(test.train), len(test.val), test.name) == (2, 1, "test")
    assert test.left_out == {"no split": 78, "spare": 1, "val": 2}


def test_test_scores_where_there_is_no_val(phantom_folder, tmp_path):
    archive = prepare_with(phantom_folder, tmp_path, ["image,label,split", "000000.jpg,a,fit", "000001.jpg,b,test"])
    assert split_samples(archive).name == "test"
    with pytest.raises(UserError, match="column split holds no split, test, train; it must name"):
        split_samples(archive, "val")


def test_a_split_that_is_not_there_cannot_be_asked_for(phantom_folder, tmp_path):
    archive = prepare_with(phantom_folder, tmp_path, ["image,label", "000000.jpg,a", "000001.jpg,b"])
    with pytest.raises(UserError, match="names no splits"):
        split_samples(archive, "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image,label,split", "000000.jpg,a,x", "000001.jpg,b,y"], "column split holds no split, x, y"),
        (["image,label", "000000.jpg,a", "000001.jpg,a"], "needs two classes"),
        (
            ["image,label,split,group", "000000.jpg,a,fit,p", "000001.jpg,b,fit,q", "000002.jpg,b,val,q"],
            r"1 of the 1 scoring samples \([0-9a-f]{32}, for one\) belong to groups of the training split",
        ),
    ],
)
def test_an_archive_that_cannot_be_scored_says_why(phantom_folder, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        labelled_split(prepare_with(phantom_folder, tmp_path, rows))


@pytest.fixture(scope="module")
def checkpoints(archive_path, tmp_path_factory) -> list[Path]:
    """Of a run of a few steps: the first and the last."""
    from fastfgssl.config.files import config_from_values

    output = tmp_path_factory.mktemp("evaluated") / "run"
    values = {
        "output": str(output),
        "data.path": str(archive_path),
        "data.image_size": 32,
        "model.backbone": "resnet18",
        "model.weights": "none",
        "model.width": 0.25,
        "model.grids": [8, 4, 2],
        "model.embedding_dim": 32,
        "model.block_dim": 32,
        "train.batch_size": 28,
        "train.steps": 120,
        "train.schedule": "joint",
        "train.precision": "float32",
        "optim.name": "adamw",
        "optim.lr": 2e-3,
    }
    pretrain(config_from_values(values))
    return list_checkpoints(output / "checkpoints")


def extractor(checkpoint: Path, archive: Archive, batch_size: int = 16) -> FeatureExtractor:
    model, config, *_ = load_pretrained(checkpoint)
    return FeatureExtractor(model, config, archive, CPU, batch_size)


def test_features_are_of_the_named_samples_in_any_batching(archive_path, checkpoints):
    archive = Archive.open(archive_path)
    ids = np.array([7, 3, 50, 81, 4])
    kept, features = extractor(checkpoints[-1], archive).plain(ids)
    np.testing.assert_array_equal(kept, ids)
    assert {name: value.shape[1] for name, value in features.items()} == {
        "head 0": 32, "head 1": 32, "head 2": 32, "all": 96, "backbone": 128, "colour": 12,
    }  # fmt: skip
    _, alone = extractor(checkpoints[-1], archive, batch_size=2).plain(ids[2:])
    for name, value in alone.items():
        torch.testing.assert_close(value[:], features[name][2:], rtol=1e-3, atol=1e-4)


def test_training_raises_view_matching(archive_path, checkpoints):
    archive = Archive.open(archive_path)
    reports = {
        path: [run_protocol(extractor(path, archive), archive, "matching", seed=seed) for seed in range(10)]
        for path in (checkpoints[0], checkpoints[-1])
    }
    # 21 images tell little of one draw of views
    before, after = (np.mean([report.results["all"]["top1"] for report in found]) for found in reports.values())
    assert {report.val_samples for found in reports.values() for report in found} == {len(split_samples(archive).val)}
    assert after > before


def test_untrained_networks_differ_by_seed_and_load_no_weights(checkpoints):
    config = load_pretrained(checkpoints[0]).config
    first, again, other = (build_untrained(config, seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first.backbone.conv1.weight, again.backbone.conv1.weight)
    assert not torch.equal(first.backbone.conv1.weight, other.backbone.conv1.weight)


@pytest.mark.parametrize("protocol", ["matching", "knn", "linear"])
def test_the_tool_prints_and_writes_each_protocol(archive_path, checkpoints, tmp_path, capsys, protocol):
    report = tmp_path / "made" / "for" / "report.json"
    words = ("--checkpoint", checkpoints[-1], "--data", archive_path, "--protocol", protocol, "--json", report)
    assert run_here(evaluate_command.main, *words) == 0
    out = capsys.readouterr().out
    record = json.loads(report.read_text())
    assert record["step"] == 120
    assert record["protocol"] == protocol
    names = {"head 0", "head 1", "head 2", "all", "backbone"} | ({"colour"} if protocol != "matching" else set())
    assert record["results"].keys() == names
    assert all(name in out for name in names)
    for result in record["results"].values():
        for metric, (low, high) in result["intervals"].items():
            assert low <= result[metric] <= high
        if protocol == "matching":
            assert result["chance"] < result["top1"] <= 1
        else:
            assert sum(map(sum, result["confusion"])) == record["val_samples"]
            assert result["by_class"].keys() == set(record["classes"])
    if protocol != "matching":
        assert 0 < record["floors"]["majority"]["balanced_accuracy"] < 1
        assert (record["overlap"]["groups"], record["overlap"]["identical_files"]) == (0, 0)
    assert record["seeds"] == {"protocol": 0, "bootstrap": 0, "training": 0}
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--checkpoint": "nowhere.pt"}, "cannot read the checkpoint nowhere.pt: No such file"),
        ({"--data": "nowhere"}, "nowhere is not an archive"),
        ({"--protocol": "best"}, "invalid choice: 'best'"),
        ({"--batch-size": "0"}, "batch size = 0: must be greater than 0"),
        ({"--json": "/proc/nodir/x.json"}, "cannot write /proc/nodir: No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(archive_path, checkpoints, arguments, message, capsys):
    values = {"--checkpoint": checkpoints[0], "--data": archive_path, "--protocol": "knn"} | arguments
    assert run_here(evaluate_command.main, *(part for pair in values.items() for part in pair)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ") and "arning" not in line]
    assert len(lines) == 1
    assert message in lines[0]
