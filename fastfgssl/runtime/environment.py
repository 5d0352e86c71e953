"""What the launcher and the machine tell a process: its place among ranks, its cores, the memory it took.

torchrun says it in RANK and its like. srun says it in SLURM_* variables, which every process of an allocation inherits,
so only those of a step with several tasks count. Without either, a process is on its own, unless mpirun started it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fastfgssl.runtime.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# how many processes Open MPI, MVAPICH, MPICH (Intel MPI's is one), and the launchers of Cray started
_MPIRUN = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE")
# Slurm numbers the steps that nobody started with srun (batch script, interactive shell) from the top
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# below the ports that Linux gives to outgoing connections, which begin at 32768
_FIRST_PORT, _PORTS = 20_000, 12_000


class RankEnvironment(NamedTuple):
    """This process among the ranks that torchrun or srun started; a process on its own is rank 0 of 1."""

    rank: int
    size: int
    local_rank: int  # among those of this machine
    local_size: int


def rank_environment() -> RankEnvironment:
    """Reads torchrun's variables, or else those of a step of srun.

    Raises `UserError` if some lack or contradict others, or if mpirun started several processes: each would take itself
    for the only one.
    """
    if _is_set_by_torchrun():
        missing = [name for name in _TORCHRUN if name not in os.environ]
        if missing:
            found = " ".join(f"{name}={os.environ[name]}" for name in _TORCHRUN if name in os.environ)
            raise UserError(
                f"{' and '.join(missing)} not set beside {found}: torchrun sets all of {', '.join(_TORCHRUN)};"
                " start with torchrun, or unset them"
            )
        place = RankEnvironment(*map(_whole_number, _TORCHRUN))
        source = " ".join(f"{name}={os.environ[name]}" for name in _TORCHRUN)
    elif _is_slurm_step():
        place = RankEnvironment(
            rank=_whole_number("SLURM_PROCID"),
            size=_whole_number("SLURM_STEP_NUM_TASKS"),
            local_rank=_whole_number("SLURM_LOCALID"),
            local_size=_tasks_on_this_node(),
        )
        source = "the variables of srun"
    else:
        if name := next((name for name in _MPIRUN if os.environ.get(name, "1") not in ("", "0", "1")), None):
            raise UserError(
                f"{name}={os.environ[name]}: mpirun has started several processes, which is no way to start ranks here;"
                " start with torchrun or srun, or unset the variable for a process of its own"
            )
        return RankEnvironment(rank=0, size=1, local_rank=0, local_size=1)
    if not (place.rank < place.size and place.local_rank < place.local_size <= place.size):
        raise UserError(
            f"{source} contradict each other: rank {place.rank} of {place.size}, on its machine {place.local_rank} of"
            f" {place.local_size}; start anew with torchrun or srun"
        )
    return place


def require_alone(what: str, *, advice: str = "") -> None:
    """Raises `UserError`, ending with `advice`, if this process is one of several ranks: each would do all of it."""
    if rank_environment().size > 1:
        raise UserError(f"{what} is the work of one process: start it without torchrun or srun{advice}")


def rendezvous_variables() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, where several ranks meet: as they are set, else from the variables of srun.

    The first host of a step runs rank 0; jobs that share it have ports of their own, made from their numbers.
    """
    found = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)}
    if not _is_set_by_torchrun() and _is_slurm_step():
        if "MASTER_ADDR" not in found:
            found["MASTER_ADDR"] = _first_host()
        if "MASTER_PORT" not in found:
            ticket = 10 * _whole_number("SLURM_JOB_ID") + _whole_number("SLURM_STEP_ID")
            found["MASTER_PORT"] = str(_FIRST_PORT + ticket % _PORTS)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in found:
            raise UserError(f"{name} is not set, so ranks cannot meet: start with torchrun or srun, or set it")
    if not (re.fullmatch(r"[0-9]+", found["MASTER_PORT"]) and 0 < int(found["MASTER_PORT"]) < 65_536):
        raise UserError(f"MASTER_PORT={found['MASTER_PORT']}: must be a port, from 1 to 65535")
    return found


def keeper_of_store(rank: int) -> str:
    """Who keeps the store where ranks meet, in words; empty if rank `rank`, this process, does."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return f"torchrun on the first machine, which keeps the store at {place},"
    return f"rank 0, which keeps the store at {place}," if rank else ""


def available_cores() -> int:
    """Processor cores that this process may use, which a scheduler may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """The most bytes that this process has held so far, or since `forget_peak_memory`.

    Not ru_maxrss, in which a process begins with what its parent had.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    return int(kibibytes) * 1024


def forget_peak_memory() -> None:
    """Makes `peak_memory` count from now on, where the system lets it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cores_per_rank(local_size: int) -> int:
    """Cores for a rank of `local_size` on this machine: torchrun's share them, srun gives each task its own."""
    if not _is_set_by_torchrun() and _is_slurm_step() and "SLURM_CPUS_PER_TASK" in os.environ:
        return max(1, min(available_cores(), _whole_number("SLURM_CPUS_PER_TASK")))
    return max(1, available_cores() // local_size)


def _is_set_by_torchrun() -> bool:
    return any(name in os.environ for name in _TORCHRUN)


def _is_slurm_step() -> bool:
    """Whether srun started this process as one of several tasks.

    In a batch script SLURM_NTASKS may be 8 and SLURM_PROCID is 0, yet nobody started the other seven.
    """
    if "SLURM_STEP_ID" not in os.environ or _whole_number("SLURM_STEP_ID") >= _FIRST_SPECIAL_STEP:
        return False
    return _whole_number("SLURM_STEP_NUM_TASKS") > 1


def _tasks_on_this_node() -> int:
    if "SLURM_STEP_TASKS_PER_NODE" not in os.environ:
        return _whole_number("SLURM_NTASKS_PER_NODE")
    text = os.environ["SLURM_STEP_TASKS_PER_NODE"]
    counts: list[int] = []
    for part in text.split(","):  # such as 4(x2),3: two nodes with four tasks, one with three
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text}: must be counts such as 4(x2),3")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _whole_number("SLURM_NODEID")
    if node >= len(counts):
        raise UserError(f"SLURM_NODEID={node}: SLURM_STEP_TASKS_PER_NODE={text} has only {len(counts)} nodes")
    return counts[node]


def _first_host() -> str:
    """The first of a list such as gpu[003-004,007],login1."""
    name = next((name for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST") if os.environ.get(name)), None)
    if name is None:
        raise UserError("neither MASTER_ADDR nor SLURM_STEP_NODELIST is set, so ranks cannot meet: set MASTER_ADDR")
    match = re.match(r"(?:[\w.-]|\[[0-9][0-9,-]*\])+(?=,|$)", os.environ[name])
    if match is None:
        raise UserError(f"{name}={os.environ[name]}: no list of hosts such as gpu[003-004,007]; set MASTER_ADDR")
    return re.sub(r"\[([0-9]+)[^]]*\]", r"\1", match[0])


def _whole_number(name: str) -> int:
    text = os.environ.get(name)
    if text is None:
        raise UserError(f"{name} is not set beside the other variables of srun: start with srun or torchrun")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{name}={text}: must be a whole number, as torchrun and srun set it")
    return int(text)
