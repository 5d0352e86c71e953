"""Going on with a run: which checkpoint, and whether it is of this run at all."""

from __future__ import annotations

import logging
from typing import Any

from fastfgssl.config.files import MEANT_BEFORE, config_from_values, config_of_run, config_to_values, list_keys
from fastfgssl.config.schema import Config
from fastfgssl.runtime.agreement import require_agreement, shared_errors
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import tidy_checkpoints
from fastfgssl.training.saving import checkpoints_of, find_newest
from fastfgssl.training.trainer import Data

log = logging.getLogger(__name__)

# the learning rate follows the length of the run: lengthening one is worth that, and a notice
_LENGTH_KEYS = ("train.steps", "train.epochs")
_TOLD = 8  # differences
# keys that do not alter which batch a step takes, or what it computes from it
_FREE_KEYS = {
    "output",
    "output_fallback",
    *(f"data.{name}" for name in ("path", "cache", "cache_gib", "max_bad_share")),
    *(f"data.{name}" for name in ("threads", "prefetch", "hw_decoder_load")),
    *(
        f"train.{name}"
        for name in (
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "sinks",
            "timeout",
            "nonfinite_limit",
            "write_patience",
        )
    ),
    *(f"train.{name}" for name in ("device", "compile", "channels_last")),
    *(f"evaluate.{name}" for name in ("every", "images", "patience")),
}
# keys that do not, either, where a loss looks at as many images as before
_MICRO_BATCH_KEYS = {"train.accumulate", "loss.cache"}


def find_state(config: Config, data: Data, world: World) -> dict[str, Any] | None:
    """The newest whole checkpoint of the run that `config` describes, the same on every rank; None for a new run.

    Raises `UserError` on every rank if the folder holds another run, or no checkpoint of several is whole.
    """
    with shared_errors(world):
        state, damaged = find_newest(config)
    require_agreement(state["step"] if state else 0, world, f"checkpoints of {config.output}")
    if state is not None:
        require_same_run(state, as_begun(config, state), data)
    with shared_errors(world):
        if world.is_main:
            tidy_checkpoints(checkpoints_of(config), damaged)
    if state is not None and world.is_main:
        if change := _changed_length(state, config):
            log.warning("%s", change)
        for key, value in _kept_meanings(state, config).items():
            log.info("%s goes on with %s=%s, as it was begun", config.output, key, value)
    return state


def as_begun(config: Config, state: dict[str, Any] | None) -> Config:
    """What the run of `state` goes on under: `config`, with what the run meant before a key existed that is unset.

    A key counts as unset that has its default. For a new run, None, that is `config` itself.
    """
    kept = _kept_meanings(state, config) if state is not None else {}
    return config_from_values(config_to_values(config) | kept) if kept else config


def _kept_meanings(state: dict[str, Any], config: Config) -> dict[str, Any]:
    then, now = config_to_values(config_of_run(state["config"])), config_to_values(config)
    defaults = {key.name: key.default for key in list_keys()}
    return {key: old for key, old in MEANT_BEFORE.items() if then[key] == old and now[key] == defaults[key]}


def require_same_run(state: dict[str, Any], config: Config, data: Data) -> None:
    """Raises `UserError` unless `state` is of the run that `config` describes, on the same archive."""
    then, now = config_to_values(config_of_run(state["config"])), config_to_values(config)
    free = _FREE_KEYS.union(_LENGTH_KEYS, _MICRO_BATCH_KEYS if _losses(then) == _losses(now) else ())
    asked = [key for key in now if key not in free and then[key] != now[key]]
    asked.sort(key=lambda key: key != "model.in_channels")  # which data.mean and data.std follow
    differences = [f"{key} = {then[key]!r}, this one has {now[key]!r}" for key in asked[:_TOLD]]
    if len(asked) > _TOLD:
        differences.append(f"{len(asked) - _TOLD} more keys that differ")
    if state["archive"] != data.fingerprint:
        differences.append(f"another archive than {config.data.path}")
    if differences:
        raise UserError(
            f"{config.output} holds a run with {'; '.join(differences)}: set it back, or choose another folder with"
            " output=..."
        )


def _losses(values: dict[str, Any]) -> int:
    """Of an update: one of all images, or one of each micro-batch where that is not the same."""
    is_mean = values["loss.cache"] or values["objective"].startswith("supervised.")
    return 1 if is_mean else values["train.accumulate"]


def _changed_length(state: dict[str, Any], config: Config) -> str | None:
    """What to tell of a run that is to become longer or shorter than it was; None if it is not."""
    then, now = state["config"], config_to_values(config)
    changes = [f"{key} from {then.get(key)} to {now[key]}" for key in _LENGTH_KEYS if then.get(key) != now[key]]
    if not changes:
        return None
    return f"{', '.join(changes)}: from step {state['step']} on the learning rate follows the new length"
