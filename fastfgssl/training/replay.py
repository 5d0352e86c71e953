"""Where a step was not finite: the head, the layer and the samples, by making it again with the network watched."""

from __future__ import annotations

from fastfgssl.data.batch import Batch
from fastfgssl.training.nonfinite import broken_gradient, watching
from fastfgssl.training.step import TrainingStep


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
