"""An update's gradients from micro-batches: each with a loss of its own, or all of them under one.

With `train.accumulate` above 1 an update is made of micro-batches, which batch norm sees one at a time. Either each has
a loss over its own rows on all ranks, and the update follows their mean; or, with `loss.cache`, there is one loss over
all rows: a first pass without gradients makes the embeddings, the loss gives the gradient of each, and a second pass
takes them to the weights micro-batch by micro-batch (GradCache, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastfgssl.data.batch import Batch
from fastfgssl.objectives.base import Update
from fastfgssl.runtime.distributed import no_sync
from fastfgssl.runtime.precision import Precision


class Way(NamedTuple):
    """How a step computes, the same for all its updates."""

    precision: Precision
    scaler: torch.amp.GradScaler


class Accumulate(Protocol):
    """Adds an update's gradients of micro-batches to its parameters', scaled; returns its logs of the whole batch.

    shared: `update` as ranks share it, whose backward exchanges gradients; they do so once, with the last micro-batch.
    """

    def __call__(
        self, update: Update, shared: nn.Module, parts: Sequence[Batch], way: Way, *, log: bool
    ) -> dict[str, Tensor]: ...


def accumulate_mean(
    update: Update, shared: nn.Module, parts: Sequence[Batch], way: Way, *, log: bool
) -> dict[str, Tensor]:
    """The mean of the losses of the parts; logs are means too. See `Accumulate`."""
    logs = []
    for part in parts:
        with no_sync(shared, part is not parts[-1]):
            with way.precision.autocast():
                output = shared(part, log=log)
                loss = output.loss / len(parts)
            logs.append(output.logs)
            _backward(loss, way)
    return _mean(logs)


def accumulate_cached(
    update: Update, shared: nn.Module, parts: Sequence[Batch], way: Way, *, log: bool
) -> dict[str, Tensor]:
    """One loss over the embeddings of all parts. See `Accumulate`."""
    with way.precision.autocast():
        with torch.no_grad(), _kept_buffers(update), record_function("forward"):
            embeddings = [torch.cat(of_parts) for of_parts in zip(*map(update.embed, parts), strict=True)]
        # leaves of at least float32: small gradients would be lost in float16
        leaves = [z.to(torch.promote_types(z.dtype, torch.float32)).requires_grad_() for z in embeddings]
        with record_function("loss"):
            output = update.compare(tuple(leaves), _whole(parts), log=log)
        # some embeddings the loss may not use, and few losses have weights of their own
        trained = [parameter for parameter in update.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(output.loss, [*leaves, *trained], allow_unused=True)
    of_leaves, of_trained = gradients[: len(leaves)], gradients[len(leaves) :]
    for part, *of_part in zip(parts, *(_chunks(gradient, len(parts)) for gradient in of_leaves), strict=True):
        is_last = part is parts[-1]
        own = [pair for pair in zip(trained, of_trained, strict=True) if is_last and pair[1] is not None]
        with no_sync(shared, not is_last):
            with way.precision.autocast():
                loss = shared(part, gradients=of_part, own=own)
            _backward(loss, way)
    return output.logs


def _backward(loss: Tensor, way: Way) -> None:
    with record_function("backward"):
        way.scaler.scale(loss).backward()


def _chunks(gradient: Tensor | None, parts: int) -> Sequence[Tensor | None]:
    return [None] * parts if gradient is None else gradient.chunk(parts)


def _mean(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(logs) == 1:
        return logs[0]
    values = torch.stack([torch.stack(list(of_part.values())) for of_part in logs]).mean(dim=0)
    return dict(zip(logs[0], values.unbind(), strict=True))


def _whole(parts: Sequence[Batch]) -> Batch:
    """What a loss of all parts may look at beside embeddings: their ids and labels."""
    labels = None if parts[0].labels is None else torch.cat([part.labels for part in parts if part.labels is not None])
    return Batch(None, None, (), np.concatenate([part.ids for part in parts]), labels)


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Puts buffers back after the body: a pass that is made twice is to move running averages once."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, before in kept:
        buffer.copy_(before)
