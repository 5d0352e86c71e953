"""Where reports are kept: files of a run, of one that goes on, and of one that was damaged."""

from __future__ import annotations

import csv
import math
import resource
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training import sinks
from fastfgssl.training.hooks import Hook, Run
from fastfgssl.training.sinks import Csv, JsonLines, TensorBoard, read_metrics


class ScoreBefore(Hook):
    """Reports a score before the first step; fails after step `fails`."""

    def __init__(self, fails: int | None = None) -> None:
        self._fails = fails

    def __call__(self, moment) -> None:
        if moment.step == 0:
            moment.logs["score_knn_all"] = 0.5
        if moment.step == self._fails:
            raise UserError("killed")


def test_a_run_that_was_killed_before_its_first_checkpoint_reports_each_step_once(make_config):
    config = make_config(train__sinks=["tensorboard", "csv"])
    with pytest.raises(UserError, match="killed"):
        pretrain(config, hooks=[ScoreBefore(fails=2)])
    pretrain(config, hooks=[ScoreBefore()])
    output = Path(config.output)
    assert [record["step"] for record in read_metrics(output)] == [0, 1, 2, 3, 4]
    rows = csv.DictReader((output / "metrics.csv").read_text().splitlines())
    assert [float(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    events = EventAccumulator(str(output)).Reload()
    assert [point.step for point in events.Scalars("score_knn/score_knn_all")] == [0]
    assert [point.step for point in events.Scalars("loss/loss")] == [1, 2, 3, 4]


@pytest.fixture
def run(tmp_path):
    def make(start: int):
        return Run(
            config=SimpleNamespace(
                output=str(tmp_path), output_fallback="", train=SimpleNamespace(pause=lambda ranks: 0.0)
            ),
            world=SimpleNamespace(is_main=True, size=1),
            objective=SimpleNamespace(weights={"cross_entropy": 1.0}),
            num_samples=1,
            is_new=start == 0,
            start=start,
            steps=9,
        )

    return make


def write(sink, run, reports: dict[int, dict[str, float]]) -> None:
    sink.begin(run)
    for step, logs in reports.items():
        sink(SimpleNamespace(step=step, logs=logs))
    sink.end()


def test_a_number_that_comes_later_gets_a_column(run, tmp_path):
    write(Csv(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0, "score": 0.5}, 3: {"loss": 3.0}})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,score\n1,1.0,\n2,2.0,0.5\n3,3.0,\n"


@pytest.mark.parametrize("sink", [JsonLines, Csv])
def test_what_was_reported_beyond_the_checkpoint_is_dropped(run, sink, tmp_path):
    write(sink(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}})
    write(sink(), run(1), {2: {"loss": 20.0}})
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    assert "3.0" not in "".join(lines)
    assert ["20.0" in line for line in lines[-2:]] == [False, True]


def test_a_curve_is_drawn_again_from_the_checkpoint_on(run, tmp_path):
    write(TensorBoard(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}})
    write(TensorBoard(), run(1), {2: {"loss": 20.0}})
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 20.0)]


def test_numbers_that_differ_in_their_last_word_stand_together_on_a_board(run, tmp_path):
    names = ["loss", "cross_entropy", "accuracy", "recall_7", "recall_mean", "lr", "images_per_second"]
    write(TensorBoard(), run(0), {1: dict.fromkeys(names, 1.0)})
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    groups = ["loss", "loss", "train", "recall", "recall", "train", "train"]
    assert tags == [f"{group}/{name}" for group, name in zip(groups, names, strict=True)]


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard, Csv])
def test_a_full_disk_is_one_clear_error_and_none_hides_it(run, kind, capfd):
    """A limit on the size of a file stands in for the disk."""
    sink = kind()
    sink.begin(run(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*(metrics|tfevents).*: File too large$"):
            list(map(sink, [SimpleNamespace(step=step, logs={"loss": 1.0}) for step in range(1000)]))
        with suppress(UserError):  # what it holds still cannot be written
            sink.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr().err == ""


WHOLE = b"step,loss\n1,1.0\n2,2.0\n"


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (WHOLE + b",3", WHOLE),
        (WHOLE + b",3\n", WHOLE),
        (WHOLE + b"2,2.", WHOLE),
        (WHOLE + b"\0\0\0\0", WHOLE),
        (WHOLE + b"2,\0\n", WHOLE),
        (b"step,loss\n1,\xff\xfe1.0\n2,2.0\n", b"step,loss\n2,2.0\n"),
        (b'step,loss\n"1,1.0\n2,2.0\n', b"step,loss\n2,2.0\n"),
        (b"step,loss\n1,1.0,7,8\n2,2.0\n", b"step,loss\n2,2.0\n"),
        (b"step,loss,note\n1,1.0,\n2,2.0,good\n", b"step,loss,note\n1,1.0,\n2,2.0,good\n"),
        (b"time,loss\n1,1.0\n", b""),
        (b"step,loss,loss\n1,1.0,1.0\n", b""),
        (b"1,1.0\n2,2.0\n", b""),
        (b"", b""),
        (b"\n\n", b""),
    ],
)
def test_lines_of_a_damaged_table_are_dropped(run, tmp_path, damaged, kept):
    file = tmp_path / "metrics.csv"
    file.write_bytes(damaged)
    write(Csv(), run(2), {3: {"loss": 3.0}})
    end = b"3,3.0,\n" if b"note" in kept else b"3,3.0\n"
    assert file.read_text().encode() == (kept or b"step,loss\n") + end


def test_a_number_that_is_not_finite_is_null_in_json_and_no_point_of_a_curve(run, tmp_path):
    for sink in (JsonLines(), TensorBoard()):
        write(sink, run(0), {1: {"loss": math.nan}, 2: {"loss": math.inf}})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [None, None]
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == []


def test_a_clock_that_is_set_back_between_two_starts_bends_no_curve(run, tmp_path, monkeypatch):
    for start, clock in ((0, 1.7e9), (2, 1.6e9), (2, 1.6e9 + 1)):
        monkeypatch.setattr(sinks, "time", SimpleNamespace(time=lambda now=clock: now))
        write(TensorBoard(), run(start), {step: {"loss": float(start)} for step in range(start + 1, 4)})
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.0), (2, 0.0), (3, 2.0)]


def test_rows_that_were_not_taken_come_with_the_next(run, tmp_path, caplog):
    sink, of_run = Csv(), run(0)
    of_run.config.output_fallback = str(tmp_path / "elsewhere")
    sink.begin(of_run)
    sink.write(1, {"loss": 1.0})
    file = tmp_path / "metrics.csv"
    file.rename(tmp_path / "away")
    file.mkdir()  # in the place of a disk that takes nothing
    for step in (2, 3):
        sink.write(step, {"loss": float(step)})
    assert caplog.text.count("cannot write") == 1
    file.rmdir()
    sink.write(4, {"loss": 4.0})
    sink.end()
    assert file.read_text() == "step,loss\n1,1.0\n2,2.0\n3,3.0\n4,4.0\n"
