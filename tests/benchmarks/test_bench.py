"""The benchmarks themselves: what a record says, that wrong results have no speed, and what suites are fed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.benchmarks import loss as loss_suite
from fastfgssl.benchmarks import prepare as prepare_suite
from fastfgssl.benchmarks import read_ahead, reading, scaling
from fastfgssl.benchmarks import train as train_suite
from fastfgssl.benchmarks.archive import write_index
from fastfgssl.benchmarks.measure import CheckFailed, Settings, Suite, require_close
from fastfgssl.benchmarks.trace import PARTS, Traces, peak_memory, seconds_by_part, write_trace
from fastfgssl.benchmarks.trainer import TRACED, make_config, train
from fastfgssl.commands import bench as bench_command
from fastfgssl.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from fastfgssl.models import build_model
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import available_cores
from fastfgssl.runtime.errors import UserError
from helpers.command import run_here
from helpers.loader import spec
from helpers.paths import ROOT

CPU = torch.device("cpu")
SUITE = Suite("s", Settings(device=CPU))


@pytest.fixture
def bench(monkeypatch):
    """A rehearsal of tools/bench.py with the given arguments, in this process: its exit code."""

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, arguments), "--rehearse"])
        return bench_command.main()

    return run


def test_records_have_what_readers_of_them_expect(bench, tmp_path):
    assert bench("loss", "--json", tmp_path / "loss.json", "--profile", tmp_path / "traces") == 0
    records = json.loads((tmp_path / "loss.json").read_text())
    assert [record["case"] for record in records] == [
        "forward + backward, N 20, D 50",
        "the choice of auto, N 20, D 24",
    ]
    names = "suite case value unit baseline baseline_value ratio limit limit_value fraction_of_limit runs spread device"
    for record in records:
        assert record.keys() == {*names.split(), "versions", "details"}
        assert {"python", "torch", "dali", "numpy"} <= record["versions"].keys()
        assert record["fraction_of_limit"] == pytest.approx(record["value"] / record["limit_value"])
    # a trace of one call of each case
    for file in (tmp_path / "traces").iterdir():
        assert any("mm" in event.get("name", "") for event in json.loads(file.read_text())["traceEvents"])
    assert len(list((tmp_path / "traces").iterdir())) == 2


def test_wrong_results_have_no_speed(bench, tmp_path, monkeypatch, capsys):
    right = loss_suite.cross_correlation_loss
    monkeypatch.setattr(loss_suite, "cross_correlation_loss", lambda *args, **options: 1.01 * right(*args, **options))
    assert bench("loss", "--json", tmp_path / "loss.json") == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert "error: suite loss computes wrong results: loss 20 x 50" in printed.err
    assert not (tmp_path / "loss.json").exists()


def test_ratios_are_of_the_same_turn():
    seconds = {"limit": [0.5, 0.5, 1.0], "ours": [1.0, 2.0, 4.0], "baseline": [2.0, 4.0, 4.0]}
    record = SUITE.record("c", seconds, baseline="b", limit="l", items=10, unit="u")
    assert (record.value, record.baseline_value, record.limit_value) == (5, 2.5, 20)
    assert (record.ratio, record.fraction_of_limit, record.runs) == (2, 0.25, 3)


def test_cases_take_turns_and_the_first_round_is_not_counted():
    calls = []
    cases = {name: (lambda name=name: calls.append(name)) for name in ("ours", "baseline", "limit")}
    options = {"baseline": ("b", cases["baseline"]), "limit": ("l", cases["limit"]), "items": 1, "unit": "u"}
    record = SUITE.compare("c", ours=cases["ours"], **options, runs=2)
    assert calls == ["ours", "baseline", "limit"] * 3
    assert record.runs == 2


def test_require_close():
    require_close("x", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0001]), tolerance=1e-3)
    for wrong in (torch.tensor([1.0, 2.1]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(CheckFailed, match="x: relative error"):
            require_close("x", wrong, torch.tensor([1.0, 2.0]), tolerance=1e-3)


def test_bytes_of_a_step_are_those_of_the_ring():
    model = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24)
    data, train = DataConfig(path="none", image_size=32), {"steps": 1, "batch_size": 12, "precision": "float32"}
    joint = Config(data=data, model=model, train=TrainConfig(schedule="joint", **train))
    parameters = sum(parameter.numel() for parameter in build_model(model).parameters())
    gathered, summed = 4 * 2 * 12 * 24 * 4, 4 * 2 * 4 * (1 + 4 * 24)
    assert scaling.bytes_a_step(joint, 3) == 2 * (2 * 4 * parameters + gathered + summed)
    assert scaling.bytes_a_step(joint, 1) == 0
    assert scaling.bytes_a_step(Config(data=data, model=model, train=TrainConfig(**train)), 3) > scaling.bytes_a_step(
        joint, 3
    )


def test_a_generated_index_is_an_archive(tmp_path):
    write_index(tmp_path, 25, samples_a_shard=10)
    archive = Archive.open(tmp_path)
    assert archive.shard_sizes.tolist() == [10, 10, 5]
    rows = archive.columns(np.array([24, 0]), ["id", "offset", "width"])
    assert (list(rows["id"]), rows["offset"].tolist(), rows["width"].tolist()) == (
        ["s/24", "s/0"],
        [4096, 0],
        [600, 600],
    )
    assert [len(payload) for payload in reading.HostPart(archive).make(0)] == [1024] * reading.BATCH


def test_an_index_is_opened_without_the_libraries_that_take_memory():
    """What opens an index of 100 million samples in 300 MB must not import torch or DALI."""
    code = "import sys, fastfgssl.benchmarks.reading; print(*sorted({'torch', 'nvidia.dali'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fast"], "invalid choice: 'fast'"),
        (["input", "--real", "nowhere"], "nowhere is not an archive"),
        (["input", "--index-samples", "0"], "--index-samples 0: must be at least 1"),
        (["loss", "--json", "/proc/a/loss.json"], "cannot write /proc/a"),
        (["loss", "--profile", "/dev/null"], "cannot write /dev/null"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert run_here(bench_command.main, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_index_that_has_no_room_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--index-samples 9+: takes .* GB are free; give fewer"):
        write_index(tmp_path, 10**17 - 1)


def test_the_train_suite_pairs_laps_and_prints_nothing(archive_path, tmp_path, monkeypatch, capsys):
    for name, number in (("TURNS", 2), ("STEPS", 6), ("LAP", 2)):
        monkeypatch.setitem(getattr(train_suite, name), "rehearsal", number)
    settings = Settings(device=CPU, archive=archive_path, traces=Traces(tmp_path), rehearse=True)
    record = next(train_suite.run(settings))
    assert record.runs == 2 * 2  # trainings, laps but the first
    assert capsys.readouterr().out == ""
    (file,) = tmp_path.iterdir()
    parts = seconds_by_part(file, steps=TRACED)
    assert parts.keys() == {*PARTS, "step"}
    assert sum(parts[name] for name in PARTS) == pytest.approx(parts["step"], rel=0.5)


def test_the_prepare_suite_counts_what_it_made(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_suite, "_KINDS", prepare_suite._KINDS[-1:])
    records = list(prepare_suite.run(Settings(device=CPU, traces=Traces(None), rehearse=True)))
    workers = f"{available_cores()} workers"
    assert [record.case for record in records] == [
        f"CT slices in JPEG 2000, {workers}",
        f"CT slices in JPEG 2000, each further one, {workers}",
    ]
    assert all(min(record.value, record.baseline_value, record.limit_value) > 0 for record in records)


def test_wrong_gradients_make_another_curve(archive_path, tmp_path):
    """Gradients that are added up over two ranks, where their mean is due, are twice as large.

    In a smaller network than the suite's, which itself finds out whether rounding moves that one's losses too far.
    """

    def curve(name: str, lr: float) -> list[float]:
        config = make_config(tmp_path / name, archive_path, "rehearsal", steps=scaling.CURVE, log_every=1)
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr, weight_decay=0.0))
        return [report["loss"] for report in train(config, World.alone(CPU))]

    threads, lr = torch.get_num_threads(), scaling.CURVE_LR
    right, still, sums = curve("right", lr), curve("still", 1e-14), curve("sums", 2 * lr)
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        rounded = curve("other threads", lr)
    finally:
        torch.set_num_threads(threads)
    details = scaling.compare_curves("other threads", rounded, right, still)
    assert details["largest_relative_change_of_losses_by_training"] > 1e-4
    for wrong in (sums, still):
        with pytest.raises(CheckFailed, match="losses differ from those of one rank"):
            scaling.compare_curves("wrong", wrong, right, still)


def trace_of(tmp_path: Path, *events: tuple) -> Path:
    """A trace of events (category, name, begin, length, further arguments), in microseconds."""
    written = [
        {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": length, "args": dict(args)}
        for cat, name, begin, length, *args in events
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": written}))
    return tmp_path / "trace.json"


def test_a_part_of_a_step_on_a_gpu_is_what_was_launched_in_it(tmp_path):
    file = trace_of(
        tmp_path,
        ("user_annotation", "forward", 0, 10),
        ("user_annotation", "backward", 20, 10),
        *(("cuda_runtime", "cudaLaunchKernel", moment, 1, ("correlation", moment)) for moment in (5, 15, 22, 24, 26)),
        ("kernel", "convolution", 100, 50, ("correlation", 5)),
        ("kernel", "of no part", 150, 50, ("correlation", 15)),
        ("kernel", "gradient", 200, 50, ("correlation", 22)),
        ("kernel", "gradient on another stream", 220, 40, ("correlation", 24)),
        ("kernel", "ncclDevKernel_AllReduce", 240, 100, ("correlation", 26)),
    )
    assert seconds_by_part(file) == pytest.approx({"forward": 50e-6, "backward": 60e-6, "communication": 100e-6})


def test_communication_on_a_cpu_is_what_is_under_way(tmp_path):
    file = trace_of(
        tmp_path,
        ("user_annotation", "gloo:all_reduce", -5, 100),  # what ranks tell each other beside the step
        ("user_annotation", "backward", 0, 20),
        ("user_annotation", "gloo:all_reduce", 10, 8),
        ("user_annotation", "gloo:all_reduce", 14, 10),
        ("user_annotation", "backward", 40, 20),
    )
    assert seconds_by_part(file, steps=2) == pytest.approx({"backward": 20e-6, "communication": 7e-6})


def test_peak_memory_is_of_what_is_held_at_once(tmp_path):
    def call() -> None:
        for _ in range(3):
            one = torch.empty(1 << 20, dtype=torch.uint8)
            two = torch.empty(1 << 20, dtype=torch.uint8)
            del one, two

    write_trace(tmp_path / "trace.json", call, CPU, profile_memory=True)
    assert peak_memory(tmp_path / "trace.json") == pytest.approx(2 << 20, rel=0.01)


def test_reader_and_index_are_measured_and_traced_on_any_archive(archive_path, tmp_path):
    settings = Settings(device=CPU, index_samples=1000, traces=Traces(tmp_path))
    reader, index = reading.records(archive_path, Suite("input", settings))
    assert reader.case.startswith("reader")
    assert index.case == "opening an index of 1,000 samples, and its first batch"
    assert index.details["resident_memory"] > 0
    written = [file.read_text() for file in sorted(tmp_path.iterdir())]
    assert len(written) == 2
    for trace, file in zip(written, ("manifest.py", "reader.py"), strict=True):
        assert file in trace


def test_a_reader_that_is_late_delays_only_who_does_not_read_ahead(archive_path, monkeypatch):
    for name, value in {"STEP": 0.1, "LATENCY": 0.09, "FIRST": 2}.items():
        monkeypatch.setattr(read_ahead, name, value)
    monkeypatch.setitem(read_ahead.STEPS, "cpu", 6)
    monkeypatch.setitem(read_ahead.TURNS, "cpu", 1)
    record = read_ahead.record(archive_path, spec(), Suite("input", Settings(device=CPU)))
    assert record.case == "reader 90 ms late each batch, step of 100 ms, batch 12"
    waits = {kind: record.details[f"share_of_time_waiting_{kind}"] for kind in ("ours", "baseline", "limit")}
    assert waits["ours"] < waits["baseline"] / 2
    assert waits["baseline"] > 0.3  # as if nothing were read ahead: 90 of 190 ms


def test_of_a_gpu_part_that_says_much_the_log_has_the_beginning_and_the_end(tmp_path, monkeypatch):
    """And the summary is there after each part, for whoever ends the run in the next one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in {"GPU_OUT": str(tmp_path / "out"), "GPU_STAGES": "core", "GPU_SECONDS": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GPU_RUN", raising=False)
    found = importlib.util.spec_from_file_location("gpu_run", ROOT / "tests" / "gpu" / "run.py")
    gpu = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "gpu_run", gpu)  # where dataclasses look for it
    found.loader.exec_module(gpu)
    much, later = ("seq", "3000000"), ("cat", str(tmp_path / "out" / "summary.txt"))
    monkeypatch.setattr(gpu, "STAGES", {"core": [gpu.Part("much", 30, much), gpu.Part("later", 30, later)]})
    assert gpu.main() == 0
    log = (tmp_path / "out" / "core.log").read_bytes()
    assert len(log) < 2 * gpu.MOST + 1000
    assert log.startswith(b"== much\n1\n2\n")
    assert b" bytes are left out here]\n" in log
    assert b"2999999\n3000000\n== much: done (" in log
    assert b"\n== later\nmuch: done (" in log
    assert (tmp_path / "out" / "summary.txt").read_text().count(": done") == 2
