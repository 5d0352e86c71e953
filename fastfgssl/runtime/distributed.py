"""The one door to torch.distributed: who this process is among its ranks, and what ranks say to each other.

Started by torchrun, by srun, or alone. NCCL carries tensors between GPUs, gloo between CPUs.
"""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fastfgssl.runtime.environment import rank_environment, rendezvous_variables
from fastfgssl.runtime.errors import RankError, UserError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    """Rank among those of this machine."""
    local_size: int
    device: torch.device
    group: ProcessGroup | None
    """All ranks, over the backend of `device`; None if there is one rank."""
    control: ProcessGroup | None
    """All ranks over gloo: small messages that must not wait for the GPU; None if there is one rank."""

    @classmethod
    def alone(cls, device: torch.device) -> World:
        """The world of one process."""
        return cls(rank=0, size=1, local_rank=0, local_size=1, device=device, group=None, control=None)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def start_world(device: str) -> Iterator[World]:
    """Joins the ranks that torchrun or srun started, or is the only one; leaves them at the end.

    device: auto, cuda or cpu. Raises `UserError` if there is no such device for this rank, or no telling its rank.
    """
    rank, size, local_rank, local_size = rank_environment()
    place = _device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        # shapes do not change from step to step: the fastest algorithm of each convolution is found by trying
        torch.backends.cudnn.benchmark = os.environ.get("FASTFGSSL_CUDNN_BENCHMARK") != "0"
    group = control = None
    if size > 1:
        os.environ.update(rendezvous_variables())  # torch reads them there; srun does not set them
        options = {"device_id": place} if place.type == "cuda" else {}
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=30),
            **options,
        )
        group, control = dist.group.WORLD, dist.new_group(backend="gloo")
    try:
        yield World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            device=place,
            group=group,
            control=control,
        )
    finally:
        if size > 1:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device cuda: torch sees no GPU; use the device cpu, or check the driver")
    if local_rank >= torch.cuda.device_count():
        raise RankError(
            f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()};"
            f" start torchrun with --nproc-per-node={torch.cuda.device_count()}; with srun,"
            f" --ntasks-per-node={torch.cuda.device_count()} and every GPU visible to each task, no --gpus-per-task"
        )
    return torch.device("cuda", local_rank)


def data_parallel(module: nn.Module, world: World, *, gradient_dtype: str = "float32") -> nn.Module:
    """`module` so that backward leaves the mean of all ranks' gradients; itself if there is one rank.

    gradient_dtype: what gradients are sent as, float32 or bfloat16; they are added up in it too.
    """
    if world.group is None:
        return module
    # training does not read buffers: each rank keeps its own running statistics; torch 2.15 has a new name for this
    is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    parallel = DistributedDataParallel(
        module,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        process_group=world.group,
        **{"forward_sync_buffers" if is_new else "broadcast_buffers": False},
    )
    if gradient_dtype == "bfloat16":
        parallel.register_comm_hook(world.group, _send_as_bfloat16)
    return parallel


def _send_as_bfloat16(group: ProcessGroup, bucket):
    # torch's hook under another name: by that one DDP refuses it on builds without NCCL, where gloo can do it
    return bf16_compress_hook(group, bucket)


@contextmanager
def one_rank_first(world: World) -> Iterator[None]:
    """Lets local rank 0 of each machine run the body before the others: what it downloads or builds, they find."""
    if world.local_rank > 0:
        barrier(world)
    try:
        yield
    finally:  # after an error too: the others are to meet it themselves, not to wait
        if world.local_rank == 0:
            barrier(world)


def barrier(world: World) -> None:
    """Waits until every rank is here."""
    if world.control is not None:
        dist.barrier(group=world.control)


def require_agreement(value: int, world: World, what: str) -> None:
    """Raises `UserError` on every rank unless all of them have the same `value` of `what`."""
    if world.control is None:
        return
    values: list[int] = [0] * world.size
    dist.all_gather_object(values, value, group=world.control)
    if len(set(values)) > 1:
        raise UserError(f"ranks differ in {what}: {values}; the folder must be one that all machines share")


@contextmanager
def shared_errors(world: World) -> Iterator[None]:
    """Raises a `UserError` that any rank meets in the body on all of them, so that they end together and say it once.

    Entered by every rank. The body must not call collectives that a rank would miss after its error.
    """
    met = None
    try:
        yield
    except UserError as error:
        met = str(error)
    if world.control is None:
        if met is not None:
            raise UserError(met)
        return
    texts: list[str | None] = [None] * world.size
    dist.all_gather_object(texts, met, group=world.control)
    for rank, text in enumerate(texts):
        if text is not None:
            raise UserError(text if rank == 0 else f"{text} (met by rank {rank})")


class SharedFlag:
    """What all ranks agree on without waiting: asked at the start of a step, answered at its end.

    A number, such as that of a signal: the greatest of all ranks, 0 where the flag is raised on none.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._raised = torch.zeros(1, dtype=torch.int32)
        self._pending = None

    def ask(self, raised: int) -> None:
        """Begins to tell the other ranks what the flag is here, 0 for not raised."""
        self._raised.fill_(raised)
        if self._world.control is not None:
            self._pending = dist.all_reduce(
                self._raised, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True
            )

    def answer(self) -> int:
        """What it was raised to on any rank, else 0; the same on all of them."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return int(self._raised.item())


class GroupRanks:
    """The ranks of a process group as the loss sees them: whose rows are where, and how they are brought together."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.size, self._group = dist.get_rank(group), dist.get_world_size(group), group
        if self.rank < 0:
            raise ValueError("group: this process is not one of its ranks")

    def gather(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to gather all ranks' rows [n, ...]; the call that it returns waits for them: [size * n, ...].

        As many rows on each rank, in the order of ranks. Autograd does not see it.
        """
        gathered = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        # bytes, since not every backend knows every float
        sent, received = (tensor.view(torch.uint8) for tensor in (rows.detach().contiguous(), gathered))
        pending = dist.all_gather_into_tensor(received, sent, group=self._group, async_op=True)

        def wait() -> torch.Tensor:
            pending.wait()
            return gathered

        return wait

    def add_up(self, values: torch.Tensor) -> None:
        """Replaces `values` by their sum over ranks."""
        dist.all_reduce(values, group=self._group)

    def raise_together(self, error: ValueError | None, brings: tuple, what: str) -> None:
        """Raises ValueError on every rank if any has an `error`, or if what they bring differs; the host waits."""
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        mine = torch.tensor([error is not None, zlib.crc32(repr(brings).encode())], device=device)
        all_ranks = self.gather(mine[None])().tolist()
        if not any(has_error for has_error, _ in all_ranks) and len({checksum for _, checksum in all_ranks}) == 1:
            return
        told: list[tuple[str | None, tuple]] = [(None, ())] * self.size
        dist.all_gather_object(told, (str(error) if error else None, brings), group=self._group)
        for rank, (text, _) in enumerate(told):
            if text is not None:
                raise ValueError(text if rank == self.rank else f"{text} (on rank {rank})")
        by_rank = ", ".join(f"{list(theirs)} on rank {rank}" for rank, (_, theirs) in enumerate(told))
        raise ValueError(f"{what}: ranks differ: {by_rank}")


def group_name(group: ProcessGroup | None) -> str:
    """The name by which `ranks_named` finds the group; empty for none."""
    return "" if group is None else group.group_name


def ranks_named(name: str) -> GroupRanks:
    """The ranks of a group of this process: operators of torch.library take names, not groups."""
    return GroupRanks(dist.distributed_c10d._resolve_process_group(name))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return _SumOverRanks.apply(grad.contiguous(), ctx.group), None


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The elementwise sum of all ranks' tensors; its gradient is the sum of all ranks' gradients."""
    return _SumOverRanks.apply(values, group)
