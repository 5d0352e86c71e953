"""Who this process is among its ranks, started by torchrun, by srun, or alone; NCCL between GPUs, gloo between CPUs.

With `agreement.py` and `collectives.py` the one door to torch.distributed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fastfgssl.runtime.environment import keeper_of_store, rank_environment, rendezvous_variables
from fastfgssl.runtime.errors import LostRank, RankError, UserError, in_a_line, require_one_of
from fastfgssl.runtime.heartbeat import Heartbeats, record_flights
from fastfgssl.runtime.signals import nothing_to_save

FIRST_TIMEOUT = 1800.0
"""Seconds that ranks wait for each other until the first step is done: one may build an operator, or choose kernels."""

_LATER = 15.0  # seconds that a collective waits longer than the heartbeats' thread


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
    heartbeats: Heartbeats = field(default_factory=Heartbeats, compare=False)

    @classmethod
    def alone(cls, device: torch.device) -> World:
        """The world of one process."""
        return cls(rank=0, size=1, local_rank=0, local_size=1, device=device, group=None, control=None)

    def __deepcopy__(self, memo: object) -> World:
        return self  # what is copied with it, such as a network whose norms know their ranks, has the same place

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def device_name(world: World) -> str:
    """What the ranks compute on, in words."""
    if world.device.type == "cuda":
        ranks = f", a GPU for each of {world.size} ranks" if world.size > 1 else ""
        return f"{torch.cuda.get_device_name(world.device)} ({world.device}){ranks}"
    ranks = f", {world.size} ranks" if world.size > 1 else ""
    return f"the CPU{ranks}{'' if torch.cuda.is_available() else ': torch sees no GPU'}"


@contextmanager
def start_world(device: str) -> Iterator[World]:
    """Joins the ranks that torchrun or srun started, or is the only one; leaves them at the end of the body.

    device: auto, cuda or cpu. Raises `UserError` if there is no such device for this rank, or no telling its rank.
    After an exception the other ranks are not waited for: they may sit in a collective that this one will never enter.
    """
    rank, size, local_rank, local_size = rank_environment()
    place = _device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    group: ProcessGroup | None = None
    control: Any = None
    heartbeats = Heartbeats()
    if size > 1:
        record_flights()
        os.environ.update(rendezvous_variables())  # torch reads them there; srun does not set them
        with _meeting():
            dist.init_process_group(
                "nccl" if place.type == "cuda" else "gloo",
                store=_new_store(rank, size),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=FIRST_TIMEOUT),
                device_id=place if place.type == "cuda" else None,
            )
            keeper, store = keeper_of_store(rank), _store_of_heartbeats()
            heartbeats = Heartbeats(rank, size, store, keeper=keeper, timeout=FIRST_TIMEOUT)
            group, control = dist.group.WORLD, dist.new_group(backend="gloo")
    try:
        with _chosen_algorithms(place):
            yield World(
                rank=rank,
                size=size,
                local_rank=local_rank,
                local_size=local_size,
                device=place,
                group=group,
                control=control,
                heartbeats=heartbeats,
            )
        heartbeats.end()
    finally:
        heartbeats.close()
    if size > 1:  # not in a `finally`: NCCL's flushes, and would wait for what the others will never send
        dist.destroy_process_group()


@contextmanager
def _meeting() -> Iterator[None]:
    """Turns what torch says of ranks that do not come, or cannot be reached, into `LostRank`."""
    try:
        with nothing_to_save():
            yield
    except RuntimeError as error:  # which those of torch are too
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LostRank(
            f"cannot meet the other ranks at {place}: {in_a_line(error).partition('. ')[0]}; see that all of them were"
            " started, and that every machine can reach this address"
        ) from None


_meeting_place: Any = None  # the store where ranks meet, kept: of a second one the port may not be free yet
_worlds = 0  # begun by this process, by all ranks in the same order


def _new_store(rank: int, size: int) -> Any:
    """A store without what an earlier world has left there: addresses, where nobody listens any more.

    Of this process, or of those that torchrun has started before it: its store outlives them.
    """
    global _meeting_place, _worlds
    if _meeting_place is None:
        _meeting_place, *_ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=FIRST_TIMEOUT)))
    _worlds += 1
    return dist.PrefixStore(_name_of_world(), _meeting_place)


def _store_of_heartbeats() -> Any:
    """A connection of its own: a call on another may wait for minutes, and keeps all others from it."""
    return dist.PrefixStore(f"{_name_of_world()}_heartbeats", _meeting_place.clone())


def _name_of_world() -> str:
    return f"world_{_worlds}_of_start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextmanager
def _chosen_algorithms(device: torch.device) -> Iterator[None]:
    """On a GPU lets cuDNN find the fastest algorithm of each convolution by trying: shapes stay the same for a run."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def set_timeout(world: World, seconds: float) -> None:
    """How long ranks wait for each other from now on, before they end with an error.

    A rank that can be named ends the others by then; a collective, which cannot name it, fails a little later.
    """
    world.heartbeats.set_timeout(seconds)
    # torch 2.11 has it under another name
    set_of_group = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in (world.group, world.control):
        if group is not None:
            set_of_group(timedelta(seconds=seconds + _LATER), group)


def _device(name: str, local_rank: int) -> torch.device:
    require_one_of("device", name, ("auto", "cuda", "cpu"))
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
    no_broadcast: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
    parallel = DistributedDataParallel(
        module,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        process_group=world.group,
        **no_broadcast,
    )
    if gradient_dtype == "bfloat16":
        parallel.register_comm_hook(world.group, _send_as_bfloat16)
    return parallel


@contextmanager
def no_sync(module: nn.Module, when: bool) -> Iterator[None]:
    """Within the body backward keeps a data-parallel module's gradients to this rank, if `when` says so."""
    if when and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def _send_as_bfloat16(group, bucket):  # DDP refuses annotations that are text
    # torch's hook under another name: by that one DDP refuses it on builds without NCCL, where gloo can do it
    return bf16_compress_hook(group, bucket)


@contextmanager
def local_main_first(world: World) -> Iterator[None]:
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
