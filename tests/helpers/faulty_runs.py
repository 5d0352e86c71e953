"""Runs that faults are done to, and what must hold after each: of a training, and of the making of an archive."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastfgssl.archive.manifest_file import MANIFEST
from fastfgssl.runtime.errors import STORAGE_EXIT_CODE
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint, load_newest_checkpoint
from fastfgssl.training.saving import BEST
from helpers.faults import Driver, Ended, Fault
from helpers.runs import losses

STEPS = 3
_FREE = ("output", "output_fallback", "train.write_patience")
_NO_FAULT = Fault(Path("/nowhere"))
HARMS = ("runs lost", "samples lost", "weights that differ", "other")


class Harm(AssertionError):
    """What a fault has done that it must not do; `kind` is one of `HARMS`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@contextmanager
def counted_as(kind: str) -> Iterator[None]:
    """Makes of whatever a check of the body, or a reader in it, raises a `Harm` of this kind."""
    try:
        yield
    except Harm:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        raise Harm(kind, f"{type(error).__name__}: {error}: {line}") from error


class Training:
    """Three steps of a tiny network, with a checkpoint after each."""

    command = "train"
    values: dict[str, Any] = {}  # noqa: RUF012 - never changed in place

    def __init__(self, driver: Driver, archive: Path, folder: Path) -> None:
        self._driver, self._archive = driver, archive
        self.output = folder / "run"
        self.checkpoints = self.output / "checkpoints"
        driver.warm(self.command, *self.arguments(folder / "warm"))
        whole = folder / "whole"
        ended = driver.run(self.command, *self.arguments(whole), fault=_NO_FAULT)
        assert ended.code == 0, ended.printed
        self.losses, self._state = losses(whole), _newest(whole)

    def arguments(self, output: Path) -> list[str]:
        values = {
            "data.path": self._archive,
            "output": output,
            "objective": "helpers.tiny_objective",
            "data.image_size": 16,
            "data.threads": 1,
            "data.window": 1,
            "model.weights": "none",
            "model.grids": [8, 4, 2],
            "train.batch_size": 4,
            "train.steps": STEPS,
            "train.epochs": "null",
            "train.checkpoint_every": 1,
            "train.keep_checkpoints": 1,
            "train.log_every": 1,
            "train.write_patience": 0,  # a disk that stays full ends the run at once
            "train.precision": "float32",
            "train.device": "cpu",
            "optim.name": "sgd",
            "evaluate.every": 0,
        } | self.values
        return ["--config", "paper", *(f"{key}={value}" for key, value in values.items())]

    def run(self, fault: Fault = _NO_FAULT, *overrides: str) -> Ended:
        return self._driver.run(self.command, *self.arguments(self.output), *overrides, fault=fault)

    def calls(self, below: Path) -> list[str]:
        """The calls of an undisturbed run on paths below a folder, in their order: name and path."""
        return _calls(self, below)

    def clear(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)

    def check_left(self, ended: Ended) -> None:
        """What must hold of the folder of a run that has ended, in whatever way. Raises `Harm`."""
        with counted_as("other"):
            require_plain_end(ended)
        with counted_as("runs lost"):
            state, damaged = load_newest_checkpoint(self.checkpoints)
        with counted_as("other"):
            assert damaged == []
            if ended.code not in (0, -9) and state is not None:
                assert ended.code == STORAGE_EXIT_CODE, ended.printed  # it is to be started again
            if (self.output / "metrics.jsonl").exists():
                text = (self.output / "metrics.jsonl").read_text()
                whole = "".join(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
                steps = whole.count("\n")
                assert [json.loads(line)["step"] for line in whole.splitlines()] == list(range(1, steps + 1))
                if ended.code != -9 and not any("metrics.jsonl" in call for call in ended.failed):
                    assert whole == text

    def check_whole(self, ended: Ended) -> None:
        """What must hold when the same command was given until it ended well. Raises `Harm`."""
        with counted_as("runs lost"):
            assert ended.code == 0, ended.printed
            state = _newest(self.output)
        with counted_as("weights that differ"):
            assert flat(state) == flat(self._state)
        with counted_as("samples lost"):
            assert losses(self.output) == self.losses
        with counted_as("other"):
            events = EventAccumulator(str(self.output)).Reload()
            assert [point.step for point in events.Scalars("loss/loss")] == list(range(1, STEPS + 1))
            assert not list(self.output.rglob("*.partial"))


class Finetuning(Training):
    """Three steps of a small classifier, scored after each: checkpoints/best.pt is one of them."""

    command = "finetune"
    values = {  # noqa: RUF012
        "objective": "supervised.plain",
        "data.image_size": 32,
        "model.backbone": "timm/test_resnet",
        "evaluate.every": 1,
        "optim.lr": 0.1,
    }

    def __init__(self, driver: Driver, archive: Path, folder: Path) -> None:
        super().__init__(driver, archive, folder)
        self._best = load_checkpoint(folder / "whole" / "checkpoints" / BEST)

    def check_left(self, ended: Ended) -> None:
        super().check_left(ended)
        with counted_as("runs lost"):
            if (self.checkpoints / BEST).exists():
                load_checkpoint(self.checkpoints / BEST)

    def check_whole(self, ended: Ended) -> None:
        super().check_whole(ended)
        with counted_as("weights that differ"):
            assert flat(load_checkpoint(self.checkpoints / BEST)) == flat(self._best)


class Preparing:
    """An archive of a few images."""

    def __init__(self, driver: Driver, source: Path, folder: Path) -> None:
        self._driver, self._source, self.folder = driver, source, folder / "out"
        driver.warm("prepare", *self.arguments(folder / "warm"))
        assert driver.run("prepare", *self.arguments(folder / "whole"), fault=_NO_FAULT).code == 0
        self._bytes = contents(folder / "whole" / "archive")

    def arguments(self, folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text("00" * 32)
        return [str(self._source), "--out", str(folder / "archive"), "--workers", "1", "--key", str(folder / "key")]

    def run(self, fault: Fault = _NO_FAULT) -> Ended:
        return self._driver.run("prepare", *self.arguments(self.folder), fault=fault)

    def calls(self, below: Path) -> list[str]:
        """As of a training."""
        return _calls(self, below)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_left(self, ended: Ended) -> None:
        archive = self.folder / "archive"
        with counted_as("other"):
            require_plain_end(ended)
            assert not archive.exists() or (archive / MANIFEST).exists()
        if archive.exists():
            with counted_as("samples lost"):
                assert contents(archive) == self._bytes

    def check_whole(self, ended: Ended) -> None:
        with counted_as("runs lost"):
            assert ended.code == 0, ended.printed
        with counted_as("samples lost"):
            assert contents(self.folder / "archive") == self._bytes
        with counted_as("other"):
            assert not (self.folder / "archive.partial").exists()


def _calls(job: Training | Preparing, below: Path) -> list[str]:
    job.clear()
    listed = job.run(Fault(below, n=1, action="none", from_then_on=True)).failed
    job.clear()
    return [line.partition(" ")[2] for line in listed]


def require_plain_end(ended: Ended) -> None:
    """It ended well, or was killed, or says in one line why it has not."""
    assert not ended.hung, f"it hung: {ended.printed[-500:]}"
    assert "Traceback" not in ended.printed, ended.printed
    if ended.code not in (0, -9):
        assert ended.code in (2, STORAGE_EXIT_CODE), (ended.code, ended.printed)
        assert len(ended.errors) == 1, ended.printed


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """A checkpoint's values by their names, tensors as bytes, without where the run's folder is and what it bears."""
    if isinstance(state, dict):
        parts = [flat(value, f"{name}/{key}") for key, value in state.items() if key not in _FREE]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(state, torch.Tensor):
        return {name: (state.dtype, tuple(state.shape), state.numpy().tobytes())}
    return {name: repr(state)}


def contents(folder: Path) -> dict[str, str]:
    """Checksums of an archive's files, but of its report, which lacks pictures that could not be read for it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest = json.loads((folder / MANIFEST).read_text())
    return found | {MANIFEST: repr({key: value for key, value in manifest.items() if key != "report"})}


def _newest(output: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(output / "checkpoints")[-1])
