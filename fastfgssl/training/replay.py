"""Where a step was not finite: the head, the layer and the samples, by making it again with the network watched."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastfgssl.data.batch import Batch
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import DamagedCheckpoint, list_checkpoints, load_checkpoint
from fastfgssl.training.hooks import Run
from fastfgssl.training.nonfinite import broken_gradient, watching
from fastfgssl.training.plan import is_frozen, set_rates
from fastfgssl.training.step import TrainingStep

log = logging.getLogger(__name__)


def diagnose(make_step: TrainingStep, batch: Batch) -> str:
    """What is not finite first in the step that `batch` makes, in words; changes no weights.

    Entered by every rank: they exchange gradients, and each tells of its own images.
    """
    names, said = list(make_step.objective.weights), ""
    updates = len(make_step.objective.updates)
    with watching(make_step.objective, batch.ids) as found:
        for index, logs in enumerate(make_step.gradients(batch)):  # to the end: the others exchange gradients with us
            head = names[index] if len(names) == updates else f"update {index}"
            if said:
                continue
            if found:
                said = f"{head}: {found[0]}"
            elif broken := [name for name, value in logs.items() if name in names and not value.isfinite()]:
                said = f"{broken[0]}: the loss itself, of samples {', '.join(map(str, batch.ids[:8]))}, ..."
            elif layer := broken_gradient(make_step.objective.model):
                said = f"{head}: the gradient of {layer}"
    return said or "with the present weights the step is finite again"


def state_before(step: int, *folders: Path) -> dict[str, Any]:
    """The newest whole checkpoint in `folders` from which `step` is still to be made; `UserError` if there is none."""
    found = sorted((path for folder in folders for path in list_checkpoints(folder)), key=lambda path: path.name)
    for path in reversed(found):
        if int(path.stem.rpartition("_")[2]) < step:
            try:
                return load_checkpoint(path)
            except DamagedCheckpoint as error:
                log.warning("%s; trying the one before", error)
    raise UserError(f"--replay {step}: no whole checkpoint in {folders[0]} is from before step {step}")


def replay(run: Run, make_step: TrainingStep, batches: Iterator[Batch], step: int) -> str:
    """Makes the steps from `run.start` to `step` again, that one with anomaly detection; what was found, in words.

    Nothing is written. On a GPU sums come in another order each time: what overflowed by a hair may not do so again.
    """
    for done in range(run.start, step - 1):
        set_rates(run, make_step.optimizer, done)
        make_step(next(batches), progress=(done + 1) / run.steps, freeze_backbone=is_frozen(run, done))
        if (done + 1) % 50 == 0:
            log.info("step %d of %d is made again", done + 1, step)
    skipped = [run.start + 1 + at for at, flags in enumerate(make_step.skipped()) if any(flags)]
    batch = next(batches)
    found = diagnose(make_step, batch)
    lines = [f"step {step}, samples {', '.join(map(str, batch.ids))}", f"skipped before it: {skipped or 'none'}", found]
    with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            for _ in make_step.gradients(batch):
                pass
        except RuntimeError as error:
            lines.append(f"anomaly detection: {error}")
            lines += [str(each.message) for each in warned if "Traceback of forward call" in str(each.message)]
    return "\n".join(lines)
