"""Memory that is available, in control groups of both versions, and what is said where there is not enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastfgssl.runtime.memory import OutOfMemory, available_memory, memory_errors

NO_LIMIT = 2**63 - 4096


@pytest.fixture
def machine(tmp_path) -> Callable[..., Path]:
    """A file system of a machine with 1,000 KiB available: the groups of this process, and files by name."""

    def make(groups: str, files: dict[str, object]) -> Path:
        all_files = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n", "proc/self/cgroup": groups} | files
        for name, content in all_files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(str(content))
        return tmp_path

    return make


def version_2(group: str, limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    folder = f"sys/fs/cgroup/{group}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 7\nactive_file 9\ninactive_file {inactive}",
    }


def version_1(group: str, limit: int, used: int, inactive: int = 0) -> dict[str, object]:
    folder = f"sys/fs/cgroup/memory/{group}"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {inactive}",
    }


HOST = 1_024_000  # bytes available
OLD_GROUPS = "5:cpu,cpuacct:/other\n4:memory:/slurm/job_7/step_0\n0::/init.scope"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, HOST),
        ("", version_2("", 5000, 1000), HOST),  # in no group
        ("0::/", version_2("", 5000, 1000, 300), 4300),  # as a container sees its own
        ("0::/", version_2("", "max", 1000), HOST),
        ("0::/", version_2("", 5000, 9000), 0),
        ("0::/", version_2("", 10 * HOST, 0), HOST),
        ("0::/job_7/step_0", version_2("job_7/step_0", "max", 900) | version_2("job_7", 5000, 1000, 50), 4050),
        ("0::/job_7/step_0", version_2("job_7/step_0", 2000, 900) | version_2("job_7", 5000, 1000), 1100),
        ("0::/job_7", version_2("job_8", 2000, 900), HOST),  # another's
        ("0::/../../host", version_2("", 5000, 1000), 4000),  # the host's path, seen from a container
        (OLD_GROUPS, version_1("", NO_LIMIT, 1000), HOST),
        (
            OLD_GROUPS,
            version_1("", NO_LIMIT, 9) | version_1("slurm/job_7", 8000, 3000, 200)
            | version_1("slurm/job_7/step_0", NO_LIMIT, 3000),
            5200,
        ),
        (OLD_GROUPS, version_1("other", 10, 9), HOST),
    ],
)  # fmt: skip
def test_the_least_that_any_group_of_this_process_leaves(machine, groups, files, expected):
    assert available_memory(machine(groups, files)) == expected


def test_this_machine_has_memory_available():
    assert available_memory() > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Critical error in pipeline:\nstd::bad_alloc"),
        MemoryError(),
    ],
)
def test_an_allocation_that_fails_says_what_to_lower(error):
    with pytest.raises(OutOfMemory) as raised, memory_errors("timing the step"):
        raise error
    assert str(raised.value).startswith("out of memory while timing the step: lower train.batch_size, data.image_size")
    assert "\n" not in str(raised.value)


def test_the_message_of_the_allocator_of_the_cpu_is_known():
    with pytest.raises(OutOfMemory), memory_errors("allocating"):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_are_not_about_memory():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("timing"):
        raise RuntimeError("shapes cannot be multiplied")
