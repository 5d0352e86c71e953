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


class Numerics(NamedTuple):
    """How a step computes, the same for all its updates."""

    precision: Precision
    scaler: torch.amp.GradScaler


class Accumulate(Protocol):
    """Adds an update's gradients of micro-batches to its parameters', scaled; returns its logs of the whole batch.

    wrapped: `update`, among several ranks in DistributedDataParallel, which shares gradients once, with the last
    micro-batch.
    """

    def __call__(
        self, update: Update, wrapped: nn.Module, micro_batches: Sequence[Batch], numerics: Numerics, *, log: bool
    ) -> dict[str, Tensor]: ...


def accumulate_mean(
    update: Update, wrapped: nn.Module, micro_batches: Sequence[Batch], numerics: Numerics, *, log: bool
) -> dict[str, Tensor]:
    """The mean of the losses of the micro-batches; logs are means too. See `Accumulate`."""
    logs = []
    for micro_batch in micro_batches:
        with no_sync(wrapped, micro_batch is not micro_batches[-1]):
            with numerics.precision.autocast():
                output = wrapped(micro_batch, log=log)
                loss = output.loss / len(micro_batches)
            logs.append(output.logs)
            _backward(loss, numerics)
    return _mean(logs)


def accumulate_cached(
    update: Update, wrapped: nn.Module, micro_batches: Sequence[Batch], numerics: Numerics, *, log: bool
) -> dict[str, Tensor]:
    """One loss over the embeddings of all micro-batches. See `Accumulate`."""
    with numerics.precision.autocast():
        with torch.no_grad(), _kept_buffers(update), record_function("forward"):
            made = [update.embed(micro_batch) for micro_batch in micro_batches]
            embeddings = [torch.cat(same) for same in zip(*made, strict=True)]
        # leaves of at least float32: small gradients would be lost in float16
        leaves = [z.to(torch.promote_types(z.dtype, torch.float32)).requires_grad_() for z in embeddings]
        with record_function("loss"):
            output = update.compare(tuple(leaves), _whole(micro_batches), log=log)
        # some embeddings the loss may not use, and few losses have weights of their own
        trained = [parameter for parameter in update.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(output.loss, [*leaves, *trained], allow_unused=True)
    of_leaves, of_trained = gradients[: len(leaves)], gradients[len(leaves) :]
    of_micro_batches = zip(*(_chunks(gradient, len(micro_batches)) for gradient in of_leaves), strict=True)
    for micro_batch, of_embeddings in zip(micro_batches, of_micro_batches, strict=True):
        is_last = micro_batch is micro_batches[-1]
        own = [pair for pair in zip(trained, of_trained, strict=True) if is_last and pair[1] is not None]
        with no_sync(wrapped, not is_last):
            with numerics.precision.autocast():
                loss = wrapped(micro_batch, gradients=of_embeddings, own=own)
            _backward(loss, numerics)
    return output.logs


def _backward(loss: Tensor, numerics: Numerics) -> None:
    with record_function("backward"):
        numerics.scaler.scale(loss).backward()


def _chunks(gradient: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if gradient is None else gradient.chunk(count)


def _mean(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(logs) == 1:
        return logs[0]
    values = torch.stack([torch.stack(list(values.values())) for values in logs]).mean(dim=0)
    return dict(zip(logs[0], values.unbind(), strict=True))


def _whole(micro_batches: Sequence[Batch]) -> Batch:
    """What a loss of all micro-batches may look at beside embeddings: their ids, labels and draws."""
    labels = [batch.labels for batch in micro_batches if batch.labels is not None]
    draws = [batch.draws for batch in micro_batches if batch.draws is not None]
    ids = np.concatenate([batch.ids for batch in micro_batches])
    return Batch(None, None, (), ids, torch.cat(labels) if labels else None, np.concatenate(draws) if draws else None)


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Puts buffers back after the body: a pass that is made twice is to move running averages once."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, before in kept:
        buffer.copy_(before)
