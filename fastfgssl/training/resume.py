"""Whether a checkpoint may be gone on with: only by the run that made it."""

from __future__ import annotations

from typing import Any

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.files import config_from_values, config_to_values
from fastfgssl.config.schema import Config
from fastfgssl.runtime.errors import UserError

# the learning rate follows the length of the run: lengthening one is worth that, and a notice
_LENGTH_KEYS = ("train.steps", "train.epochs")
# keys that do not alter which batch a step takes, or what it computes from it
_FREE_KEYS = {
    "output",
    *(f"data.{name}" for name in ("path", "threads", "prefetch", "hw_decoder_load")),
    *(f"train.{name}" for name in ("log_every", "checkpoint_every", "keep_checkpoints")),
    *(f"train.{name}" for name in ("device", "compile", "channels_last")),
}


def check_same_run(state: dict[str, Any], config: Config, archive: Archive) -> None:
    """Raises `UserError` if the checkpoint `state` is of another run than `config` on `archive` describes."""
    # a key that the run did not know yet had what is its default now
    then, now = config_to_values(config_from_values(state["config"])), config_to_values(config)
    for key in now:
        if key not in _FREE_KEYS and key not in _LENGTH_KEYS and then[key] != now[key]:
            raise UserError(
                f"{config.output} holds a run with {key} = {then[key]!r}, this one has {now[key]!r}:"
                f" set it back, or choose another folder with output=..."
            )
    if state["archive"] != archive.fingerprint:
        raise UserError(f"{config.output} holds a run on another archive than {archive.path}; choose another output")


def changed_length(state: dict[str, Any], config: Config) -> str | None:
    """What to tell of a run that is to become longer or shorter than it was; None if it is not."""
    then, now = state["config"], config_to_values(config)
    changes = [f"{key} from {then.get(key)} to {now[key]}" for key in _LENGTH_KEYS if then.get(key) != now[key]]
    if not changes:
        return None
    return f"{', '.join(changes)}: from step {state['step']} on the learning rate follows the new length"
