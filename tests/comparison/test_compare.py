"""`fastfgssl compare` from beginning to end: three objectives, two seeds, stopped in the middle and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fastfgssl import evaluate
from fastfgssl.archive.manifest import Archive
from fastfgssl.commands import compare
from fastfgssl.comparison import compare as comparison
from fastfgssl.comparison import scored
from fastfgssl.comparison.entrants import network_of
from fastfgssl.comparison.results import intervals_over
from fastfgssl.config.files import load_config
from fastfgssl.evaluation import linear_probe
from fastfgssl.evaluation.checkpoint import score_network
from fastfgssl.evaluation.scores import paired_differences
from fastfgssl.evaluation.split import draw_fraction, groups_of, labelled_split
from fastfgssl.training.checkpoint import list_checkpoints
from fastfgssl.training.display import Terminal
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here

OBJECTIVES = ["fgssl.joint", "barlow", "untrained"]
STEPS = 6
TINY = [
    *("data.image_size=32", "data.threads=1", "model.width=0.125", "model.embedding_dim=24", "model.block_dim=16"),
    *("baseline.projector=[16,16]", "train.batch_size=12", f"train.steps={STEPS}", "train.log_every=2"),
    *("train.sinks=[]", "train.device=cpu", f"optim.warmup_epochs={0.5 * STEPS * 12 / 84}"),
]


class Compared(NamedTuple):
    out: Path
    words: list[str]
    stopped_code: int
    left_when_stopped: list[str]  # runs
    results: dict
    printed: str
    scored_runs: Counter  # how often each network was scored


@pytest.fixture(scope="module")
def compared(archive_path, tmp_path_factory) -> Compared:
    out = tmp_path_factory.mktemp("compared") / "out"
    words = ["--config", "demo", "--objectives", ",".join(OBJECTIVES), "--seeds", "2", "--out", str(out)]
    words += [f"data.path={archive_path}", *TINY]
    times: Counter = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        score, shown = scored.score_network, Terminal.__call__

        def count(network, *arguments, **options):
            times[network.config.objective, network.config.seed, network.step] += 1
            return score(network, *arguments, **options)

        def press(self, moment):
            if self._name == "barlow-seed-0" and moment.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            shown(self, moment)

        patch.setattr(scored, "score_network", count)
        patch.setattr(Terminal, "__call__", press)
        stopped = run_here(compare.main, *words)
        left = sorted(path.name for path in (out / "runs").iterdir())
        assert not (out / "comparison.json").exists()
        patch.setattr(Terminal, "__call__", shown)
        log = out.parent / "printed"
        with log.open("w") as file:
            patch.setattr(sys, "stdout", file)
            code = run_here(compare.main, *words)
        assert code == 0, log.read_text()
    return Compared(
        out, words, stopped, left, json.loads((out / "comparison.json").read_text()), log.read_text(), times
    )


def test_it_stops_as_training_does_and_makes_nothing_twice(compared):
    assert compared.stopped_code == 130
    assert compared.left_when_stopped == ["barlow-seed-0", "fgssl.joint-seed-0"]
    starts = json.loads((compared.out / "runs" / "barlow-seed-0" / "provenance.json").read_text())
    assert starts[0]["step"] == 0
    assert 2 <= starts[1]["step"] < STEPS
    assert len(json.loads((compared.out / "runs" / "fgssl.joint-seed-0" / "provenance.json").read_text())) == 1
    assert set(compared.scored_runs.values()) == {1}


def test_every_run_has_as_many_images_or_as_many_seconds(compared):
    results, runs = compared.results, compared.out / "runs"
    assert results["equal_images"]["images"] == STEPS * 12
    seconds = {}
    for name in ("fgssl.joint", "barlow"):
        for seed in (0, 1):
            assert list_checkpoints(runs / f"{name}-seed-{seed}" / "checkpoints")[-1].stem == f"step_{STEPS:09d}"
        records, done, spent = read_metrics(runs / f"{name}-seed-0"), 0, 0.0
        for record in records:
            spent, done = spent + (record["step"] - done) * 12 / record["images_per_second"], record["step"]
        seconds[name] = spent
        cost = results["equal_images"]["costs"][name]
        assert cost["by_seed"][0]["seconds"] == pytest.approx(spent)
        assert cost["images_per_second"] == pytest.approx(STEPS * 12 / cost["seconds"])
        assert 2**27 < cost["peak_memory"] < 2**36  # of a process that has torch in it
    budget = results["equal_seconds"]["seconds"]
    assert budget == pytest.approx(min(seconds.values()))
    for name, spent in seconds.items():
        share = budget / spent
        steps = STEPS if share >= 0.95 else max(1, int(share * STEPS))
        assert results["equal_seconds"]["costs"][name]["steps"] == steps
        if steps < STEPS:
            folder = runs / f"{name}-seed-1-steps-{steps}"
            assert list_checkpoints(folder / "checkpoints")[-1].stem == f"step_{steps:09d}"
            # the schedule is that of the whole run: half of it warmup, and down again from there
            peak = load_config(folder / "config.yaml").optim
            assert peak.warmup_epochs == pytest.approx(0.5 * steps * 12 / 84)
            assert read_metrics(folder)[-1]["lr"] <= peak.lr


def test_scores_and_differences_are_those_of_the_checkpoints(compared, archive_path):
    runs = compared.out / "runs"
    kept = {
        (name, seed): json.loads((runs / f"{name}-seed-{seed}" / "scores-knn-stored.json").read_text())
        for name in OBJECTIVES
        for seed in (0, 1)
    }
    report = evaluate(list_checkpoints(runs / "barlow-seed-1" / "checkpoints")[-1], archive_path, "knn")
    assert kept["barlow", 1]["report"]["results"] == json.loads(json.dumps(report.results))
    probabilities = {key: np.array(of["predictions"]["probabilities"]["backbone"]) for key, of in kept.items()}
    np.testing.assert_array_equal(probabilities["barlow", 1], report.predictions.probabilities["backbone"])

    rows = {row["label"]: row for row in compared.results["equal_images"]["rows"]}
    assert list(rows) == ["fgssl.joint", "fgssl.joint, heads", "barlow", "untrained", "untrained, heads"]
    for name in OBJECTIVES:
        values = [kept[name, seed]["report"]["results"]["backbone"]["balanced_accuracy"] for seed in (0, 1)]
        assert [seed["balanced_accuracy"] for seed in rows[name]["by_seed"]] == values
        assert rows[name]["scores"]["balanced_accuracy"] == pytest.approx(np.mean(values))
        low, high = rows[name]["scores"]["intervals"]["balanced_accuracy"]
        assert 0 <= low < np.mean(values) < high <= 1
    assert rows["barlow"]["scores"]["differences"] == paired_differences(
        report.predictions.truth,
        *([probabilities[name, seed] for seed in (0, 1)] for name in ("barlow", "fgssl.joint")),
        report.predictions.groups,
        classes=compared.results["classes"],
    )
    assert "differences" not in rows["fgssl.joint"]["scores"]
    # what is not trained stands in both tables as it is
    in_seconds = {row["label"]: row for row in compared.results["equal_seconds"]["rows"]}
    assert rows["untrained"]["by_seed"] == in_seconds["untrained"]["by_seed"]


def test_the_tables_fit_a_narrow_terminal(compared):
    lines = compared.printed.splitlines()
    tables = [line for line in lines if line[:1] in "│┃┏┡└" and line]
    assert max(map(len, tables)) <= 100
    assert [sum(line.startswith(f"│ {name} ") for line in tables) for name in OBJECTIVES] == [2, 2, 2]
    assert f"equal images: {STEPS * 12} seen" in compared.printed
    assert "difference to fgssl.joint" in compared.printed


def test_the_plot_shows_every_interval(compared):
    with Image.open(compared.out / "comparison.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14)):  # of matplotlib: images, seconds
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 200


def test_networks_of_a_seed_learn_from_the_same_part_of_the_labels(archive_path, tmp_path, capsys):
    given = ["--config", "demo", f"data.path={archive_path}", *TINY, "--out", tmp_path, "--seeds", "2"]
    given += ["--objectives", "untrained", "--label-fraction", "0.3"]
    assert run_here(compare.main, *given) == 0
    results = json.loads((tmp_path / "comparison.json").read_text())
    archive = Archive.open(archive_path)
    split, labels = labelled_split(archive)
    groups = groups_of(archive, split.train)
    drawn = [draw_fraction(split.train, labels[split.train], groups, 0.3, seed) for seed in (0, 1)]
    assert set(drawn[0]) != set(drawn[1])
    assert (results["label_fraction"], results["fit_samples"]) == (0.3, len(drawn[0]))
    assert f"{len(drawn[0])} to train, 30 % of the labels, drawn by each seed; 2 seeds" in " ".join(
        capsys.readouterr().out.split()
    )
    for seed in (0, 1):
        kept = json.loads(
            (tmp_path / f"runs/untrained-seed-{seed}/scores-knn-stored-label_fraction-0.3-seed-{seed}.json").read_text()
        )
        network = network_of(load_config("demo", [f"data.path={archive_path}", *TINY]), "untrained", seed)
        report = score_network(network, archive, "knn", label_fraction=0.3, seed=seed, device="cpu")
        assert kept["report"]["results"] == json.loads(json.dumps(report.results))


def test_without_matplotlib_the_rest_is_there(compared, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: comparison.Outcome(compared.results, None))
    assert run_here(compare.main, *compared.words, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "no plot without matplotlib: pip install 'fastfgssl[plot]'\n" in printed
    assert printed.count("│ barlow ") == 2
    assert not (tmp_path / "comparison.png").exists()


def test_a_run_of_another_length_is_not_gone_on_with(compared, capsys):
    assert run_here(compare.main, *compared.words, "train.steps=8") == 2
    assert "fgssl.joint-seed-0 holds a run of 6 steps, this comparison has 8: choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objectives", "barlo"], "objective 'barlo' cannot be compared: .*; did you mean 'barlow'"),
        (["--objectives", "fgssl.joit"], "objective = 'fgssl.joit': .*; did you mean 'fgssl.joint'"),
        (["--objectives", "supervised.plain"], "objective 'supervised.plain' cannot be compared: "),
        (["--objectives", "barlow,barlow"], "objective 'barlow' is named twice"),
        (["--objectives", ","], "no objectives to compare"),
        (["--objectives", "barlow,imagenet"], "objective imagenet: model.weights = 'imagenet': must be none or a file"),
        (["--seeds", "0"], "seeds = 0: must be 1 or more"),
        (["--seconds", "0"], r"seconds = 0.0: must be greater than 0"),
        (["--label-fraction", "0.01"], "a label fraction of 0.01 leaves class .* without images"),
        (["--label-fraction", "0.1", "--protocol", "linear"], "too few labelled images for the linear probe"),
        (["output=runs/mine"], "override output=runs/mine: here --out says it"),
    ],
)
def test_bad_input_is_one_line(archive_path, tmp_path, capsys, words, said):
    given = ["--config", "demo", f"data.path={archive_path}", *TINY, "--out", tmp_path / "out", *words]
    assert run_here(compare.main, *given) == 2
    assert re.fullmatch(f"error: {said}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_an_archive_without_labels_is_told_before_training(archive_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Archive, "has_column", lambda self, name: False)
    given = ["--config", "demo", f"data.path={archive_path}", *TINY, "--out", tmp_path / "out"]
    assert run_here(compare.main, *given) == 2
    told = f"error: {archive_path} has no labels, which score a comparison: prepare it with --labels\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "out").exists()


def test_so_are_labels_that_are_too_few_for_the_probe(archive_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(linear_probe, "_FOLDS", 50)
    given = ["--config", "demo", f"data.path={archive_path}", *TINY, "--protocol", "linear", "--out", tmp_path / "out"]
    assert run_here(compare.main, *given) == 2
    assert capsys.readouterr().err.startswith("error: too few labelled images for the linear probe: 50-fold")
    assert not (tmp_path / "out").exists()


def test_what_a_table_says_of_a_share_and_of_seeds():
    assert compare._share(-0.0001, -0.2, 0.1, sign="+") == "+0.0 (-20.0 to 10.0)"
    assert compare._share(0.5, None, None) == "50.0"
    assert compare._share(None, None, None) == ""
    assert [intervals_over({"seeds": seeds}) for seeds in ([0], [0, 1])] == ["groups", "groups and seeds"]
