"""Checkpoints: written whole or not at all, found again by step, read without running what they hold."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from fastfgssl.errors import UserError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_NAME = re.compile(r"step_(\d{9})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands in a run's folder of checkpoints."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(folder: Path, state: dict[str, Any], *, keep: int) -> Path:
    """Writes `state`, which tells its `step`, and removes all but the first and the `keep` newest checkpoints.

    The file appears under its name only when all of it is on the disk.
    """
    path = checkpoint_path(folder, state["step"])
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write the checkpoint {path}: {error.strerror}; earlier ones are untouched") from None
    partial.replace(path)
    for old in list_checkpoints(folder)[1:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. Holds tensors and plain values only; no code is run.

    Raises `UserError` if the file is damaged or not a checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises what its unpickler and its zip reader happen to raise
        raise UserError(f"{path}: damaged, or not a checkpoint: {str(error).splitlines()[0]}") from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if version is None:
        raise UserError(f"{path}: not a checkpoint of fastfgssl")
    if version > FORMAT_VERSION:
        raise UserError(f"{path}: made by a newer fastfgssl (format {version}); update to read it")
    return state


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be read, or None if there is none; damaged ones are passed over."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the one before", error)
    return None
