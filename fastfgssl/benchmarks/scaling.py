"""Suite `scaling`: the trainer on 1, 2 and 4 ranks: images/s, what they send, and whether they learn the same.

Gloo on CPUs, NCCL on GPUs, started by torchrun as people start it. Bytes are counted where they can be: on the loopback
device, which gloo's ranks of one machine use, as the difference between a longer and a shorter run.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastfgssl.benchmarks.archive import open_archive
from fastfgssl.benchmarks.measure import CheckFailed, Record, record_of
from fastfgssl.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.config_files import write_config
from fastfgssl.distributed import World
from fastfgssl.loss import bytes_to_send
from fastfgssl.metrics import read_metrics
from fastfgssl.models import build_model
from fastfgssl.updates import plan_updates

SHORT, LONG = 8, 24  # steps of the two runs
_LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def run(device: torch.device, archive: Path | None = None) -> Iterator[Record]:
    """A record for each number of ranks that this machine can hold."""
    counts = [1, 2, 4] if device.type == "cpu" else [n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count()]
    with tempfile.TemporaryDirectory() as name, open_archive(archive) as path:
        folder = Path(name)
        alone = _Runs(1, folder, path, device)
        for ranks in counts:
            yield _record(_Runs(ranks, folder, path, device) if ranks > 1 else alone, alone, device)


class _Runs:
    """A short and a long run on some ranks: time and bytes of a step, free of what starting takes; and their losses."""

    def __init__(self, ranks: int, folder: Path, archive: Path, device: torch.device) -> None:
        self.ranks = ranks
        rates, sent = {}, {}
        for steps in (SHORT, LONG):
            config = _config(folder / f"{ranks}-{steps}", archive, device, steps=steps)
            before = _sent()
            records = _torchrun(config, ranks)
            sent[steps] = _sent() - before
            rates[steps] = [1 / record["images_per_second"] for record in records[SHORT // 2 :]]
        self.config = config
        self.seconds = rates[LONG]
        self.bytes_a_step = (sent[LONG] - sent[SHORT]) / (LONG - SHORT)
        # With batch statistics of the global batch, ranks compute what one process does. The weights all but stand
        # still: updates amplify rounding so much that losses differ by a hundredth between one thread and two.
        config = _config(folder / f"{ranks}-sync", archive, device, steps=SHORT, batch_norm="sync", lr=1e-12)
        self.losses = [record["loss"] for record in _torchrun(config, ranks)]


def _record(runs: _Runs, alone: _Runs, device: torch.device) -> Record:
    expected = bytes_a_step(runs.config, runs.ranks)
    differences = [abs(a - b) / abs(b) for a, b in zip(runs.losses, alone.losses, strict=True)]
    if max(differences) > 1e-3:
        raise CheckFailed(f"{runs.ranks} ranks: losses differ from those of one by up to {max(differences):.2%}")
    details = {"bytes_a_step_by_formula": expected, "largest_relative_difference_of_losses": max(differences)}
    if device.type == "cpu" and _LOOPBACK.exists():
        details["bytes_a_step"] = runs.bytes_a_step
        if runs.ranks > 1 and not 0.9 < runs.bytes_a_step / expected < 1.2:
            raise CheckFailed(f"{runs.ranks} ranks send {runs.bytes_a_step:.3g} bytes a step, not {expected:.3g}")
    shortest = min(len(runs.seconds), len(alone.seconds))
    ours, one = runs.seconds[:shortest], alone.seconds[:shortest]
    return record_of(
        "scaling",
        f"{runs.ranks} rank{'s' * (runs.ranks > 1)}, progressive, global batch {runs.config.train.batch_size}",
        {"ours": ours, "baseline": one, "limit": [seconds / runs.ranks for seconds in one]},
        baseline="one rank",
        limit="as many times one rank",
        items=1,
        unit="images/s",
        device=device,
        details=details,
    )


def bytes_a_step(config: Config, ranks: int) -> float:
    """Bytes that all ranks send in a step: each update's gradients around the ring, and the loss of each head.

    A ring of W ranks that adds up P bytes sends 2 (W - 1) P in all, one that gathers sends (W - 1) of them.
    """
    if ranks == 1:
        return 0.0
    alone = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"), group=None, control=None)
    updates = plan_updates(build_model(config.model), config, alone)
    gradients = sum(4 * parameter.numel() for update in updates for parameter in update.heads.parameters())
    dim, heads = config.model.embedding_dim, len(config.train.heads)
    sums, element = 4 * (1 + 4 * dim), 4 if config.train.precision == "float32" else 2
    gathered = ranks * (bytes_to_send(config.train.batch_size, dim, ranks, element) - sums)
    return (ranks - 1) * (2 * gradients + heads * (gathered + 2 * sums))


def _config(
    output: Path, archive: Path, device: torch.device, *, steps: int, batch_norm: str = "local", lr: float = 1e-3
) -> Config:
    on_gpu = device.type == "cuda"
    small = ModelConfig(
        backbone="resnet18", weights="none", width=0.5, grids=(8, 4, 2), embedding_dim=256, block_dim=256
    )
    return Config(
        output=str(output),
        data=DataConfig(path=str(archive), image_size=224 if on_gpu else 64, threads=0 if on_gpu else 1),
        model=ModelConfig(weights="none") if on_gpu else small,
        train=TrainConfig(
            steps=steps,
            batch_size=200 if on_gpu else 32,
            precision="bfloat16" if on_gpu and batch_norm == "local" else "float32",
            device=device.type,
            batch_norm=batch_norm,
            log_every=1,
        ),
        optim=OptimConfig(name="sgd", lr=lr),
    )


def _torchrun(config: Config, ranks: int) -> list[dict]:
    """What the run logs. Raises `CheckFailed` with torchrun's last line if it fails."""
    file = Path(config.output).with_suffix(".yaml")
    write_config(config, file)
    train = Path(__file__).parents[2] / "tools" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run([*command, str(train), "--config", str(file)], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or "no output").splitlines()
        told = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise CheckFailed(f"{ranks} ranks: the run ended with {done.returncode}: {told}")
    records = read_metrics(Path(config.output))
    if not all(math.isfinite(record["loss"] or math.nan) for record in records):
        raise CheckFailed(f"{ranks} ranks: a loss is not finite")
    return records


def _sent() -> int:
    return int(_LOOPBACK.read_text()) if _LOOPBACK.exists() else 0
