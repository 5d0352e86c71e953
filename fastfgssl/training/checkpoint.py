"""Checkpoints: written whole or not at all, found again by step, read without running what they hold."""

from __future__ import annotations

import errno
import logging
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import write_whole
from fastfgssl.runtime.patience import patiently

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
_ENTRIES = {
    "step": int,
    "model": dict,
    "objective": dict,
    "optimizer": dict,
    "scaler": dict,
    "config": dict,
    "archive": str,
}
_NAME = re.compile(r"step_(\d{9})\.pt")


class DamagedCheckpoint(UserError):
    """A file that could be read but is not, or no longer, a checkpoint."""


class Newest(NamedTuple):
    state: dict[str, Any] | None  # of the newest checkpoint that is whole; None if there is no checkpoint at all
    damaged: list[Path]  # newer ones that are not


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands in a run's folder of checkpoints."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(folder: Path, state: dict[str, Any], *, keep: int) -> Path:
    """Writes `state`, which tells its `step`, and removes all but the first and the `keep` newest checkpoints.

    The file appears under its name only when all of it is on the disk. Raises `UserError` if it cannot be written.
    """
    path = checkpoint_path(folder, state["step"])
    write_checkpoint(path, state)
    try:
        for old in list_checkpoints(folder)[1:-keep]:
            if old != path:
                old.unlink()
    except OSError as error:  # they take room, and are tried with the next: that is not worth a run
        log.warning("cannot remove old checkpoints of %s: %s", folder, error.strerror or error)
    return path


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path`, whole or not at all. Raises `UserError` if it cannot be written."""
    try:
        with file_errors("write the checkpoint", path):
            patiently(lambda: _write_once(path, state), f"write the checkpoint {path}")
    except UserError as error:
        raise UserError(f"{error}; earlier checkpoints are untouched", errno=error.errno) from None


def _write_once(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"format_version": FORMAT_VERSION, **state}
    write_whole(path, lambda file: _write(file, stored), nbytes=_nbytes(stored))


def _nbytes(value: Any) -> int:
    """Of the tensors in it: nearly all of a checkpoint."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_nbytes, parts))


def _write(file: BinaryIO, state: dict[str, Any]) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # a short write makes torch's zip writer fail in its turn, and hides why
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def list_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. Holds tensors and plain values only; no code is run.

    Raises `DamagedCheckpoint` if the file is not a checkpoint of ours, and another `UserError` if it cannot be read or
    a newer program made it.
    """
    with file_errors("read the checkpoint", path):
        state = patiently(lambda: _load(path), f"read the checkpoint {path}")
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise DamagedCheckpoint(f"{path}: not a checkpoint of fastfgssl")
    if version > FORMAT_VERSION:
        raise UserError(f"{path}: made by a newer fastfgssl (format {version}); update to read it")
    if version == 1:  # objectives had no state of their own
        state["objective"] = {}
    for name, type in _ENTRIES.items():
        if not isinstance(state.get(name), type):
            raise DamagedCheckpoint(f"{path}: not a whole checkpoint of fastfgssl: it lacks {name!r}")
    return state


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            _require_sound(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:  # the machine's fault: the file may be whole
            raise
        except Exception as error:  # torch and zipfile raise what their unpicklers and readers happen to raise
            # so is a disk's; but not what a position outside the file is answered with
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise DamagedCheckpoint(f"{path}: damaged, or not a checkpoint of fastfgssl") from None


def _require_sound(file: BinaryIO) -> None:
    """Compares what a file holds with its checksums, which torch writes and does not read."""
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            raise zipfile.BadZipFile
    file.seek(0)


def load_newest_checkpoint(*folders: Path) -> Newest:
    """The newest checkpoint that is whole, of all `folders`; damaged ones are passed over.

    Raises `UserError` if there are checkpoints and none is whole, or one cannot be read for another reason than damage.
    """
    found: list[Path] = []
    for folder in folders:
        with file_errors("read", folder):
            found += patiently(partial(list_checkpoints, folder), f"read {folder}")
    damaged: list[Path] = []
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            return Newest(load_checkpoint(path), damaged)
        except DamagedCheckpoint as error:
            log.warning("%s; trying the one before", error)
            damaged.append(path)
    if damaged:
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folders[0]} is whole: put back a copy of one,"
            " or move the folder away to start from step 0"
        )
    return Newest(None, damaged)


def tidy_checkpoints(folder: Path, damaged: list[Path]) -> None:
    """Renames damaged checkpoints to *.damaged, out of the way of new ones, and deletes half-written ones."""
    with file_errors("tidy up", folder):
        for path in damaged:
            path.replace(path.with_suffix(".damaged"))
        for half in folder.glob("*.partial"):
            half.unlink()
