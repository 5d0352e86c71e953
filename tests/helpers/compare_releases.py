"""Trains under two checkouts with the same seeds on a CPU and says whether numbers and weights are the same bits.

python tests/helpers/compare_releases.py OLD_CHECKOUT NEW_CHECKOUT [--quick]

Compared are the fields of metrics.jsonl but for times, and the weights after the last step, in float32: both schedules,
with micro-batches and with the cached loss, on one and on two ranks; and a run that the old one begins and the new one
ends. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

TIMES = {"images_per_second", "data_wait"}
CONFIG = """
data: {image_size: 32, threads: 1, window: 2}
model: {backbone: resnet18, weights: none, width: 0.125, grids: [8, 4, 2], embedding_dim: 24, block_dim: 16}
train: {batch_size: 24, steps: 6, precision: float32, device: cpu, log_every: 1, checkpoint_every: 3}
optim: {name: sgd, lr: 0.05}
"""
WAYS = {
    "plain": [],
    "accumulated": ["train.accumulate=2"],
    "cached": ["train.accumulate=2", "loss.cache=true"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--quick", action="store_true", help="one rank and the cached way alone")
    arguments = parser.parse_args()
    old, new = arguments.old.absolute(), arguments.new.absolute()
    ways, sizes = (["cached"], [1]) if arguments.quick else (list(WAYS), [1, 2])
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG)
        run(old, folder, "tools/phantom.py", folder / "images", "--images", 96, "--width", 48, "--height", 48)
        run(old, folder, "tools/prepare.py", folder / "images", "--out", folder / "archive", "--shard-size", "0.03")
        for schedule, way, ranks in itertools.product(("progressive", "joint"), ways, sizes):
            case = f"{schedule}, {way}, {ranks} rank{'s' * (ranks > 1)}"
            settings = [f"train.schedule={schedule}", *WAYS[way]]
            for checkout, output in ((old, "old"), (new, "new")):
                train(checkout, folder, folder / output, ranks, settings + meant_then(checkout))
            # begun by the old one, ended by the new one
            shutil.copytree(folder / "old", folder / "begun")
            (folder / "begun" / "checkpoints" / "step_000000006.pt").unlink()
            train(new, folder, folder / "begun", ranks, settings)
            for other in ("new", "begun"):
                differences = compare(folder / "old", folder / other)
                print(f"{case}, {other}: {differences or 'the same'}", flush=True)
                failures += bool(differences)
            for output in ("old", "new", "begun"):
                shutil.rmtree(folder / output)
    return int(failures > 0)


def meant_then(checkout: Path) -> list[str]:
    """Settings under which a checkout does what those meant that do not know their keys."""
    knows_sizes = any("view_sizes" in file.read_text() for file in (checkout / "fastfgssl").rglob("schema.py"))
    return ["data.view_sizes=pixels"] if knows_sizes else []


def train(checkout: Path, folder: Path, output: Path, ranks: int, settings: list[str]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    arguments = ["--config", folder / "config.yaml", f"data.path={folder / 'archive'}", f"output={output}", *settings]
    run(checkout, folder, *launcher, checkout / "tools" / "train.py", *arguments)


def run(checkout: Path, folder: Path, *command: object) -> None:
    package = folder / f"package-{checkout.name}"
    if not package.exists():  # the package as it is installed: with the operators inside
        (package / "fastfgssl").mkdir(parents=True)
        for path in (checkout / "fastfgssl").iterdir():
            (package / "fastfgssl" / path.name).symlink_to(path)
        if not (package / "fastfgssl" / "kernels").exists():
            (package / "fastfgssl" / "kernels").symlink_to(checkout / "kernels")
    # one thread: sums of several depend on how work is dealt out
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def compare(old: Path, new: Path) -> list[str]:
    before, after = (read(folder) for folder in (old, new))
    differences = [
        f"{name}: {a} and {b}" for name, a, b in zip(["steps"], [len(before)], [len(after)], strict=True) if a != b
    ]
    for a, b in zip(before, after, strict=False):
        differences += [f"step {a['step']}: {key} {a[key]} and {b.get(key)}" for key in a if a[key] != b.get(key)]
    a, b = (torch.load(folder / "checkpoints" / "step_000000006.pt", weights_only=True) for folder in (old, new))
    differences += [f"weights of {key}" for key in a["model"] if not torch.equal(a["model"][key], b["model"][key])]
    return differences[:5]


def read(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


if __name__ == "__main__":
    sys.exit(main())
