"""The benchmarks themselves: what a record says, that wrong results have no speed, and what suites are fed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.benchmarks import loss as loss_suite
from fastfgssl.benchmarks import reading, scaling
from fastfgssl.benchmarks.archive import write_index
from fastfgssl.benchmarks.measure import CheckFailed, compare, record_of, require_close, traces
from fastfgssl.config import Config, DataConfig, ModelConfig, TrainConfig
from fastfgssl.models import build_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    """tools/bench.py with the given arguments, in this process: its exit code."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "tools" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(loss_suite, "SHAPES", {"cpu": ((20, 50),)})
    monkeypatch.setattr(loss_suite, "CHOICES", {"cpu": ((20, 24),)})

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, arguments)])
        return module.main()

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
        assert record["versions"].keys() == {"python", "torch", "dali"}
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
    record = record_of("s", "c", seconds, baseline="b", limit="l", items=10, unit="u", device=CPU)
    assert (record.value, record.baseline_value, record.limit_value) == (5, 2.5, 20)
    assert (record.ratio, record.fraction_of_limit, record.runs) == (2, 0.25, 3)


def test_cases_take_turns_and_the_first_round_is_not_counted():
    calls = []
    cases = {name: (lambda name=name: calls.append(name)) for name in ("ours", "baseline", "limit")}
    with traces(None):
        record = compare(
            "s", "c", ours=cases["ours"], baseline=("b", cases["baseline"]), limit=("l", cases["limit"]), items=1,
            unit="u", runs=2, device=CPU,
        )  # fmt: skip
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
    [(["fast"], "invalid choice: 'fast'"), (["input", "--real", "nowhere"], "nowhere is not an archive")],
)
def test_bad_arguments_are_one_line(arguments, message):
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
