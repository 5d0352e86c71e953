"""Where a checkpoint goes when the output folder cannot take it: elsewhere, or there again when it can."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastfgssl.config.schema import Config
from fastfgssl.runtime.errors import AWAY, TAKES_NOTHING, UserError, file_errors
from fastfgssl.runtime.files import write_whole
from fastfgssl.runtime.patience import persistently
from fastfgssl.training.checkpoint import (
    DamagedCheckpoint,
    Newest,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
    write_checkpoint,
)

log = logging.getLogger(__name__)
BEST = "best.pt"
_BEFORE = "best_before.pt"  # the best until there was a better one


def checkpoints_of(config: Config) -> Path:
    """The folder of a run's checkpoints."""
    return Path(config.output) / "checkpoints"


def fallback_of(config: Config) -> Path | None:
    """The folder, below `output_fallback`, of the run that is in this `output`; None if there is to be none."""
    if not config.output_fallback:
        return None
    output = Path(config.output).absolute()
    place = hashlib.sha256(str(output).encode(errors="surrogateescape")).hexdigest()[:8]
    return Path(config.output_fallback) / f"{output.name}-{place}"


def save(config: Config, state: dict[str, Any], *, seconds: float) -> None:
    """Writes a checkpoint of a run; where its folder does not take it into the fallback; tries both for `seconds`.

    A run that has done no step has nothing to lose: its first checkpoint is tried once. Raises `UserError` if it cannot
    be written anywhere.
    """
    kept = {checkpoints_of(config): config.train.keep_checkpoints}
    _save(config, state, lambda folder: save_checkpoint(folder, state, keep=kept.get(folder, 1)), seconds)


def save_best(config: Config, state: dict[str, Any], *, seconds: float) -> Path:
    """Writes `state` as best.pt, and keeps the one that it replaces; where that is now. Otherwise as `save`."""
    return _save(config, state, lambda folder: _save_best(folder, state), seconds)


def _save_best(folder: Path, state: dict[str, Any]) -> Path:
    path = folder / BEST
    if path.exists():
        keep_as(path, folder / _BEFORE)
    write_checkpoint(path, state)
    return path


def _save(config: Config, state: dict[str, Any], write: Callable[[Path], Path], seconds: float) -> Path:
    """Calls `write` with the folder that takes what it writes, and returns what it returns."""
    fallback = fallback_of(config)

    def place() -> Path:
        try:
            path = write(checkpoints_of(config))
        except UserError as error:
            if fallback is None or not state["step"]:
                raise OSError(error.errno, str(error)) from None
            try:
                path = write(fallback)
            except UserError as other:
                raise OSError(error.errno, f"{error}; nor the fallback: {other}") from None
            log.warning("%s; saved as %s, from where the same command goes on", error, path)
        else:
            _clear(fallback, path)
        return path

    try:
        return persistently(place, f"save step {state['step']}", seconds if state["step"] else 0.0)
    except OSError as error:
        raise UserError(error.strerror or str(error), errno=error.errno) from None


def keep_as(path: Path, kept: Path) -> None:
    """Gives what is at `path` a second name, in the place of what had it, or a copy where there are no links."""
    second = kept.with_name(f"{kept.name}.partial")
    with file_errors("keep", path):
        second.unlink(missing_ok=True)
        try:
            os.link(path, second)
        except OSError:
            with path.open("rb") as file:
                write_whole(kept, lambda copy: shutil.copyfileobj(file, copy))
        else:
            second.replace(kept)


def find_newest(config: Config) -> Newest:
    """The newest checkpoint of a run that is whole, wherever it was saved. Raises as `load_newest_checkpoint`."""
    fallback = fallback_of(config)
    return load_newest_checkpoint(checkpoints_of(config), *([fallback] if fallback else []))


def find_best(config: Config) -> tuple[Path, dict[str, Any]] | None:
    """The latest best.pt of a run, wherever it was saved; if it is damaged the one that it has replaced.

    Damaged ones are renamed to *.damaged. None if there is none. Raises `UserError` if one cannot be read.
    """
    folders = [checkpoints_of(config), *filter(None, [fallback_of(config)])]
    found = []
    for path in (folder / name for folder in folders for name in (BEST, _BEFORE)):
        with file_errors("read", path):
            if not path.exists():
                continue
        try:
            found.append((path, load_checkpoint(path)))
        except DamagedCheckpoint as error:
            log.warning("%s; the best one before it stands in for it", error)
            with suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
    return max(found, key=lambda each: each[1]["step"], default=None)


def goes_on(config: Config, error: UserError) -> bool:
    """Whether a run that `error` has ended is one that a disk or a file server has, and goes on when that is back.

    A new run that finds its disk full, or read-only, is none: nothing of it would be lost.
    """
    if error.errno in TAKES_NOTHING:
        try:
            return any(list_checkpoints(folder) for folder in (checkpoints_of(config), fallback_of(config)) if folder)
        except OSError:  # it is not to be read either
            return True
    return error.errno in AWAY


def _clear(fallback: Path | None, saved: Path) -> None:
    """Removes what was saved there, since the output folder has a later one of its kind."""
    if fallback is None:
        return
    with suppress(OSError):
        of_its_kind = {BEST, _BEFORE} if saved.name == BEST else {path.name for path in list_checkpoints(fallback)}
        for path in list(fallback.iterdir()):
            if path.name in of_its_kind or path.suffix == ".partial":
                path.unlink()
        fallback.rmdir()
