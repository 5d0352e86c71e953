"""Who a process is: torchrun's variables, those of a step of srun, none, and what is half set or unreadable."""

from __future__ import annotations

import os
import re

import pytest

from fastfgssl.runtime.console import run_tool
from fastfgssl.runtime.environment import RankEnvironment, available_cores, cores_per_rank, rank_environment
from fastfgssl.runtime.environment import rendezvous_variables as meet
from fastfgssl.runtime.errors import UserError

ALONE = RankEnvironment(rank=0, size=1, local_rank=0, local_size=1)
TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
BATCH_SCRIPT = {  # what sbatch gives a script that asks for 11 tasks on three nodes
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "11",
    "SLURM_NODELIST": "gpu[003-004,007]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SRUN = BATCH_SCRIPT | {  # what srun in it adds, on the last node
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[003-004,007]",
    "SLURM_PROCID": "10",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "2",
}


@pytest.fixture(autouse=True)
def set_variables(monkeypatch):
    """Replaces all variables of launchers; None leaves one out."""

    def replace(variables: dict[str, str | None]) -> None:
        for name in [
            *TORCHRUN,
            "MASTER_ADDR",
            *(name for name in os.environ if re.match("SLURM|OMPI|PMI|MV2|MASTER", name)),
        ]:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    replace({})
    return replace


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ALONE),
        (TORCHRUN, RankEnvironment(9, 16, 1, 8)),
        (SRUN, RankEnvironment(10, 11, 2, 3)),
        (SRUN | {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, RankEnvironment(4, 11, 0, 4)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": None, "SLURM_NTASKS_PER_NODE": "5"}, RankEnvironment(10, 11, 2, 5)),
        (SRUN | TORCHRUN, RankEnvironment(9, 16, 1, 8)),  # torchrun in a step of srun
        (BATCH_SCRIPT, ALONE),
        (BATCH_SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ALONE),
        (SRUN | {"SLURM_STEP_ID": "4294967290"}, ALONE),  # the shell of salloc
    ],
)
def test_the_place_among_ranks(set_variables, variables, expected):
    set_variables(variables)
    assert rank_environment() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "^LOCAL_RANK and LOCAL_WORLD_SIZE not set beside RANK=0 WORLD_SIZE=2: ",
        ),
        ({"LOCAL_RANK": "0"}, "^RANK and WORLD_SIZE and LOCAL_WORLD_SIZE not set beside LOCAL_RANK=0"),
        (TORCHRUN | {"RANK": "one"}, "^RANK=one: must be a whole number"),
        (TORCHRUN | {"RANK": "-1"}, "^RANK=-1: must be a whole number"),
        (TORCHRUN | {"RANK": ""}, "^RANK=: must be a whole number"),
        (TORCHRUN | {"RANK": "16"}, "^RANK=16 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8 contradict each other"),
        (TORCHRUN | {"LOCAL_RANK": "8"}, "contradict each other: rank 9 of 16, on its machine 8 of 8"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "17"}, "contradict each other"),
        (SRUN | {"SLURM_PROCID": None}, "^SLURM_PROCID is not set beside the other variables of srun"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": None}, "^SLURM_STEP_NUM_TASKS is not set"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": None}, "^SLURM_NTASKS_PER_NODE is not set"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x2"}, r"^SLURM_STEP_TASKS_PER_NODE=4\(x2: must be counts such as"),
        (SRUN | {"SLURM_NODEID": "3"}, r"^SLURM_NODEID=3: SLURM_STEP_TASKS_PER_NODE=4\(x2\),3 has only 3 nodes"),
        (SRUN | {"SLURM_LOCALID": "3"}, "^the variables of srun contradict each other: rank 10 of 11, .* 3 of 3"),
    ],
)
def test_what_is_half_set_or_unreadable_is_one_line(set_variables, variables, message):
    set_variables(variables)
    with pytest.raises(UserError, match=message) as caught:
        rank_environment()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[003-004,007]", "gpu003"),
        ("gpu[7,9-12],login1", "gpu7"),
        ("login1,gpu[003-004]", "login1"),
        ("node-a.cluster.org", "node-a.cluster.org"),
        ("rack[2-3]n[01-16]", "rack2n01"),
        ("gpu[003-004]-ib", "gpu003-ib"),
    ],
)
def test_ranks_meet_at_the_first_host_of_a_step(set_variables, hosts, first):
    set_variables(SRUN | {"SLURM_STEP_NODELIST": hosts})
    assert meet()["MASTER_ADDR"] == first


def test_every_rank_of_a_step_finds_the_same_port_and_other_steps_another(set_variables):
    ports = []
    for change in ({}, {"SLURM_PROCID": "0"}, {"SLURM_STEP_ID": "3"}, {"SLURM_JOB_ID": "4712"}):
        set_variables(SRUN | change)
        ports.append(int(meet()["MASTER_PORT"]))
    assert ports[0] == ports[1]
    assert len(set(ports)) == 3
    assert all(1024 < port < 32_768 for port in ports)


def test_what_is_set_is_where_ranks_meet(set_variables):
    set_variables(SRUN | {"MASTER_ADDR": "10.0.0.1"})
    assert meet()["MASTER_ADDR"] == "10.0.0.1"
    set_variables(SRUN | TORCHRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert meet() == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN, "^MASTER_ADDR is not set"),
        (TORCHRUN | {"MASTER_ADDR": "host"}, "^MASTER_PORT is not set"),
        (TORCHRUN | {"MASTER_ADDR": "host", "MASTER_PORT": "high"}, "^MASTER_PORT=high: must be a port"),
        (TORCHRUN | {"MASTER_ADDR": "host", "MASTER_PORT": "65536"}, "^MASTER_PORT=65536: must be a port"),
        (
            SRUN | {"SLURM_STEP_NODELIST": "gpu[003-", "SLURM_NODELIST": None},
            r"^SLURM_STEP_NODELIST=gpu\[003-: no",
        ),
        (SRUN | {"SLURM_STEP_NODELIST": None, "SLURM_NODELIST": None}, "^neither MASTER_ADDR nor SLURM_STEP_NODELIST"),
        (SRUN | {"SLURM_JOB_ID": None}, "^SLURM_JOB_ID is not set"),
    ],
)
def test_ranks_that_cannot_meet_say_what_lacks(set_variables, variables, message):
    set_variables(variables)
    with pytest.raises(UserError, match=message):
        meet()


def test_ranks_of_torchrun_share_the_cores_and_tasks_of_srun_have_their_own(set_variables, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    assert available_cores() == cores_per_rank(rank_environment().local_size) == 12
    set_variables(TORCHRUN | {"LOCAL_WORLD_SIZE": "4"})
    assert cores_per_rank(rank_environment().local_size) == 3
    set_variables(TORCHRUN | {"LOCAL_WORLD_SIZE": "16"})
    assert cores_per_rank(rank_environment().local_size) == 1
    set_variables(SRUN | {"SLURM_CPUS_PER_TASK": "12"})  # bound: this process sees its own cores alone
    assert cores_per_rank(rank_environment().local_size) == 12
    set_variables(SRUN | {"SLURM_CPUS_PER_TASK": "2"})  # not bound: it sees those of its neighbours too
    assert cores_per_rank(rank_environment().local_size) == 2
    set_variables(SRUN)
    assert cores_per_rank(rank_environment().local_size) == 4


def test_a_tool_that_cannot_tell_its_rank_says_so_in_one_line(set_variables, capsys):
    set_variables({"RANK": "0"})
    with pytest.raises(SystemExit) as end:
        run_tool(rank_environment)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE and LOCAL_RANK and LOCAL_WORLD_SIZE not set")


MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize("variables", [MPIRUN, {"PMI_SIZE": "4", "PMI_RANK": "0"}, {"MV2_COMM_WORLD_SIZE": "2"}])
def test_processes_of_mpirun_are_refused(set_variables, variables):
    """Each would train alone in the folder of all."""
    set_variables(variables)
    with pytest.raises(UserError, match=rf"^{next(iter(variables))}=\d: mpirun has .* start with torchrun or srun"):
        rank_environment()
    set_variables(variables | SRUN)  # srun sets PMI_SIZE too
    assert rank_environment().size == 11
    set_variables(variables | TORCHRUN)  # torchrun that mpirun has started, once a machine
    assert rank_environment().size == 16
    set_variables(dict.fromkeys(variables, "1"))
    assert rank_environment() == ALONE
