"""The seam between the loop and what is learned.

An objective is one module: it says which views and labels it needs, which updates are made of a batch, and what each of
them minimises. The loop (`training/trainer.py`) knows these types and no objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastfgssl.config.schema import Config, TrainConfig
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.models.batch_norm import synchronise_batch_norm
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World

__all__ = ["Needs", "Objective", "Output", "Update", "compiled", "made", "memory_format", "place_model"]


class Output(NamedTuple):
    """What an update makes of the embeddings of a batch."""

    loss: Tensor
    """[]: what backward starts from."""
    logs: dict[str, Tensor]
    """Numbers to report, by name: [], on the device, detached. Their names are the same for every batch."""


class Update(nn.Module):
    """One optimiser update. Its parameters are exactly those that it trains: this is what ranks share gradients of.

    `embed` and `compare` are apart so that one exact loss can be taken over micro-batches (training/accumulation.py).
    """

    dim: int | None = None
    """Length of the embeddings that a loss decorrelates, where it has such: what tells how many of them are dead."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss is a function of, a row an image: [b, ...] each."""
        raise NotImplementedError

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        """The loss of the embeddings of `batch`; log: with what is worth its time only where it is reported.

        It may have weights of its own, and need not use each embedding. With `loss.cache`, `batch` holds the ids,
        labels and draws of all micro-batches and no views.
        """
        raise NotImplementedError

    def traffic(self, rows: int, *, element_size: int) -> Traffic:
        """What `compare` hands to collectives for `rows` images of a rank, a number of whose embeddings has that size.

        Nothing, unless an update's loss looks at other ranks' embeddings.
        """
        return Traffic()

    def forward(
        self,
        batch: Batch,
        *,
        gradients: Sequence[Tensor | None] | None = None,
        own: Sequence[tuple[Tensor, Tensor]] = (),
        log: bool = False,
    ) -> Output | Tensor:
        """The output; or, with the `gradients` of a loss by each embedding, a scalar whose backward has them.

        A gradient of None stands for an embedding that the loss does not use. own: parameters that `compare` uses, each
        with its gradient, which backward is to have too.
        """
        with record_function("forward"):
            embeddings = self.embed(batch)
        if gradients is None:
            with record_function("loss"):
                return self.compare(embeddings, batch, log=log)
        pairs = [*zip(embeddings, gradients, strict=True), *own]
        products = [(value.to(gradient.dtype) * gradient).sum() for value, gradient in pairs if gradient is not None]
        return torch.stack(products).sum()


class Objective:
    """What is learned, and from what."""

    model: nn.Module
    """What is trained and saved. To be scored and taken home it is a `fastfgssl.models.Network`."""
    needs: Needs
    """What a batch has to hold."""
    updates: Sequence[Update]
    """The updates that are made of each batch, in their order."""
    weights: dict[str, float]
    """The reported loss of a step is the sum of these logs, weighted."""

    @property
    def scored(self) -> nn.Module:
        """What is scored while training and taken home: `model`, or an average of what it was."""
        return self.model

    def after_step(self, progress: float) -> None:
        """Called when all updates of a batch are made; progress: the share of the run that is done."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the model: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""


Model = TypeVar("Model", bound=nn.Module)


def place_model(model: Model, config: Config, world: World) -> Model:
    """`model` itself, on the device of `world`, in the layout of training, with the batch norms that were asked for."""
    if config.train.batch_norm == "sync":
        synchronise_batch_norm(model, world)
    return model.to(world.device).to(memory_format=memory_format(config.train)).train()


_MOST_VARIANTS = 64  # of a region's code: shapes of blocks, sets of stages, with and without gradients


def compiled(regions: Iterable[nn.Module], forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of a network whose `regions` are compiled, each by itself; batches keep a shape.

    Region by region, because blocks of a shape share their code, whichever stages are asked for. The whole forward
    would be compiled anew for each set of stages, five times the network: minutes more before the first step.
    """
    from torch._dynamo import config as dynamo  # seconds, and not wanted otherwise

    for region in regions:
        if region._compiled_call_impl is None:  # for no other update yet
            region.compile(dynamic=False)
    return dynamo.patch(recompile_limit=_MOST_VARIANTS)(forward)


def made(view: Tensor | None) -> Tensor:
    """A view of a batch that the objective needs."""
    assert view is not None, "the graph makes what `needs` says"
    return view


def memory_format(config: TrainConfig) -> torch.memory_format:
    """The layout of images, activations and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
