"""Suite `scaling`: the trainer on 1, 2 and 4 ranks: images/s, what they send, and whether they learn the same.

Gloo on CPUs, NCCL on GPUs, started by torchrun as people start it. Bytes are counted where they can be: on the loopback
device, which gloo's ranks of one machine use, as the difference between a longer and a shorter run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fastfgssl.benchmarks.archive import open_archive
from fastfgssl.benchmarks.measure import CheckFailed, Record, Settings, Suite
from fastfgssl.benchmarks.trace import seconds_by_part
from fastfgssl.benchmarks.trainer import TRACED, make_config, traced_config
from fastfgssl.config.files import write_config
from fastfgssl.config.schema import Config, GradientDtype
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import cores_per_rank
from fastfgssl.runtime.signals import run_child
from fastfgssl.training.sinks import read_metrics
from fastfgssl.training.traffic import step_traffic

TURNS = 2  # of a run of one rank and a run of several
SHORT, LONG, LAP = 8, 24, 4  # steps of a short and of a long run, and those that are timed together
CURVE, CURVE_LR = 6, 1e-8
"""Steps and learning rate of the curves of the loss that are compared.

The network starts so badly conditioned that updates amplify rounding: at learning rates of daily use one thread and two
are a tenth apart after five steps. At this one, on phantoms, training changes the losses by a thousandth, and rounding
by a few hundredths of that.
"""
ALLOWED = 0.2  # difference between two curves, as a share of what training changes; W-fold gradients make about W - 1
_TOOL = ("-m", "fastfgssl", "train", "--config")
_PROFILED = ("-m", "fastfgssl.benchmarks.trainer")
_LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def run(settings: Settings) -> Iterator[Record]:
    """A record for each number of ranks that this machine can hold, and one for gradients sent as bfloat16."""
    device = settings.device
    counts = [1, 2, 4] if device.type == "cpu" else [n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count()]
    with tempfile.TemporaryDirectory() as name, open_archive(None) as phantoms, open_archive(settings.archive) as path:
        runs = _Runs(Path(name), path, phantoms, Suite("scaling", settings))
        reference, still = runs.curve(1), runs.curve(1, lr=1e-14)
        other_threads = runs.curve(1, threads=1 if cores_per_rank(1) > 1 else 2)
        for ranks in counts:
            # against itself, one rank shows what rounding does
            curve = runs.curve(ranks) if ranks > 1 else other_threads
            details = compare_curves(f"{ranks} ranks", curve, reference, still)
            yield _record(runs, ranks, details)
        if ranks > 1:
            curve = runs.curve(ranks, gradient_dtype="bfloat16")
            details = compare_curves(f"{ranks} ranks, gradients sent as bfloat16", curve, reference, still)
            yield _record(runs, ranks, details, gradient_dtype="bfloat16")


class _Runs:
    """Runs of the trainer on several ranks, each in a folder of its own."""

    def __init__(self, folder: Path, archive: Path, phantoms: Path, suite: Suite) -> None:
        self.suite, self.device, self._folder, self._made = suite, suite.device, folder, 0
        self._archive, self._phantoms = archive, phantoms

    def config(self, *, steps: int, gradient_dtype: GradientDtype = "float32") -> Config:
        """One decoding thread a rank on a CPU, whose cores the ranks need."""
        self._made += 1
        output = self._folder / str(self._made)
        config = make_config(output, self._archive, self.device.type, steps=steps, log_every=LAP)
        return replace(
            config,
            data=replace(config.data, threads=int(self.device.type == "cpu")),
            train=replace(config.train, gradient_dtype=gradient_dtype),
        )

    def curve(
        self,
        ranks: int,
        *,
        lr: float = CURVE_LR,
        threads: int | None = None,
        gradient_dtype: GradientDtype = "float32",
    ) -> list[float]:
        """Losses of the small network on phantoms, with batch statistics of the global batch as one process has."""
        self._made += 1
        output = self._folder / str(self._made)
        config = make_config(output, self._phantoms, "cpu", steps=CURVE, log_every=1)
        config = replace(
            config,
            train=replace(
                config.train,
                device="cuda" if self.device.type == "cuda" else "cpu",
                batch_norm="sync",
                gradient_dtype=gradient_dtype,
            ),
            optim=replace(config.optim, lr=lr, weight_decay=0.0),
        )
        # TF32 rounds by more than what training changes
        self.start(config, ranks, threads=threads, environment={"NVIDIA_TF32_OVERRIDE": "0"})
        return [record["loss"] for record in read_metrics(output)]

    def seconds(self, ranks: int, config: Config) -> list[float]:
        """Seconds an image in each lap but the first, in which pipelines and memory are set up."""
        self.start(config, ranks)
        _, *later = read_metrics(Path(config.output))
        return [1 / record["images_per_second"] for record in later]

    def parts(self, config: Config, ranks: int, case: str) -> dict[str, float]:
        """Seconds of each part of a step on the first rank; its trace is kept if traces are wanted."""
        config = traced_config(config, "traced")
        file = self.suite.settings.traces.file(f"scaling: {case}") or Path(config.output).with_suffix(".json")
        self.start(config, ranks, program=_PROFILED, arguments=[str(file.resolve())])
        return {f"seconds_{name}": value for name, value in seconds_by_part(file, steps=TRACED).items()}

    def start(
        self,
        config: Config,
        ranks: int,
        *,
        threads: int | None = None,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = _TOOL,
        arguments: Sequence[str] = (),
    ) -> None:
        """Runs `program` on the file of `config`; threads: of each rank, None for its share of the cores.

        Raises `CheckFailed` with what the run said last if it fails.
        """
        file, log_file = (Path(f"{config.output}.{ending}") for ending in ("yaml", "log"))
        write_config(config, file)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        # torchrun leaves a folder of its own behind if it is interrupted
        settings = {"OMP_NUM_THREADS": str(threads or cores_per_rank(ranks)), "TMPDIR": str(self._folder)}
        command = [sys.executable, *launcher, *program, str(file), *arguments]
        with log_file.open("w") as log:
            code = run_child(
                command, stdout=subprocess.DEVNULL, stderr=log, env=os.environ | settings | (environment or {})
            )
        if code:
            lines = log_file.read_text().strip().splitlines() or ["no output"]
            last = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise CheckFailed(f"{ranks} ranks: the run ended with {code}: {last}")


def compare_curves(name: str, curve: list[float], reference: list[float], still: list[float]) -> dict[str, float]:
    """The largest difference between two curves of the loss, and the largest change that training makes; relative.

    still: the curve of weights that do not move. Raises `CheckFailed` if the difference is more than `ALLOWED` of the
    change: a gradient that is wrong by a factor of two makes about half of it, or more.
    """
    differences = [abs(a - b) / abs(b) for a, b in zip(curve, reference, strict=True)]
    changes = [abs(a - b) / abs(b) for a, b in zip(reference, still, strict=True)]
    if not max(differences) <= ALLOWED * max(changes):
        raise CheckFailed(
            f"{name}: losses differ from those of one rank by up to {max(differences):.2e}, where training changes"
            f" them by {max(changes):.2e}"
        )
    return {
        "largest_relative_difference_of_losses": max(differences),
        "largest_relative_change_of_losses_by_training": max(changes),
    }


def _record(
    runs: _Runs, ranks: int, details: dict[str, float], *, gradient_dtype: GradientDtype | None = None
) -> Record:
    """Several ranks against one; or with another type of gradients, against the same ranks without it."""
    configured = partial(runs.config, gradient_dtype=gradient_dtype or "float32")
    config = configured(steps=LONG)
    case = f"{ranks} rank{'s' * (ranks > 1)}, {config.train.schedule}, global batch {config.train.batch_size}"
    case += f", gradients sent as {gradient_dtype}" if gradient_dtype else ""
    seconds: dict[str, list[float]] = {"ours": [], "baseline": [], "limit": []}
    sent = {}
    for _ in range(TURNS):
        one = runs.seconds(1, runs.config(steps=LONG))
        seconds["limit"] += [each / ranks for each in one]
        seconds["baseline"] += runs.seconds(ranks, runs.config(steps=LONG)) if gradient_dtype else one
        before = _sent()
        seconds["ours"] += runs.seconds(ranks, configured(steps=LONG))
        sent[LONG] = _sent() - before
    before = _sent()
    runs.seconds(ranks, configured(steps=SHORT))
    sent[SHORT] = _sent() - before
    expected = details["bytes_a_step_by_formula"] = bytes_a_step(config, ranks)
    if runs.device.type == "cpu" and _LOOPBACK.exists():
        counted = details["bytes_a_step"] = (sent[LONG] - sent[SHORT]) / (LONG - SHORT)
        if ranks > 1 and not 0.9 < counted / expected < 1.2:
            raise CheckFailed(f"{ranks} ranks send {counted:.3g} bytes a step, not {expected:.3g}")
    return runs.suite.record(
        case,
        seconds,
        baseline="gradients sent as float32" if gradient_dtype else "one rank",
        limit="as many times one rank",
        unit="images/s",
        details=details | runs.parts(config, ranks, case),
    )


def bytes_a_step(config: Config, ranks: int) -> float:
    """Bytes that all ranks send in a step."""
    updates = build_objective(config, World.alone(torch.device("cpu")), fresh=False).updates
    traffic = step_traffic(updates, config, config.train.batch_size // ranks)
    return ranks * sum(part.sent(ranks) for part in traffic)


def _sent() -> int:
    return int(_LOOPBACK.read_text()) if _LOOPBACK.exists() else 0
