"""Where a checkpoint goes when the output folder cannot take it: elsewhere, or there again when it can."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastfgssl.config.schema import Config
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.patience import persistently
from fastfgssl.training.checkpoint import Newest, list_checkpoints, load_newest_checkpoint, save_checkpoint

log = logging.getLogger(__name__)


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
    folder, fallback = checkpoints_of(config), fallback_of(config)

    def write() -> None:
        try:
            save_checkpoint(folder, state, keep=config.train.keep_checkpoints)
        except UserError as error:
            if fallback is None or not state["step"]:
                raise _Refused(str(error)) from None
            try:
                path = save_checkpoint(fallback, state, keep=1)
            except UserError as other:
                raise _Refused(f"{error}; nor the fallback: {other}") from None
            log.warning("%s; saved as %s, from where the same command goes on", error, path)
        else:
            _clear(fallback)

    try:
        persistently(write, f"save step {state['step']}", seconds if state["step"] else 0.0)
    except _Refused as error:
        raise UserError(str(error)) from None


def find_newest(config: Config) -> Newest:
    """The newest checkpoint of a run that is whole, wherever it was saved. Raises as `load_newest_checkpoint`."""
    fallback = fallback_of(config)
    return load_newest_checkpoint(checkpoints_of(config), *([fallback] if fallback else []))


class _Refused(OSError):
    """No place has taken a checkpoint."""


def _clear(fallback: Path | None) -> None:
    """Removes what was saved there, since the output folder has later ones."""
    if fallback is None:
        return
    with suppress(OSError):
        for path in list_checkpoints(fallback):
            path.unlink()
        if fallback.exists():
            fallback.rmdir()
