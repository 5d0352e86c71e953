"""Parts made by a Ray cluster of two nodes: the same bytes, whoever is killed, and nothing stays on the cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastfgssl.archive.building.worker import Death
from fastfgssl.archive.building.workers import run_in
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.commands.prepare import main
from fastfgssl.runtime.errors import UserError
from helpers.command import run_here
from helpers.images import fixed_key
from helpers.paths import ROOT, TESTS, TOOLS
from helpers.repeated import contents, write_repeated
from helpers.tasks import Act
from helpers.waiting import wait_until

pytest.importorskip("ray")

import ray

from fastfgssl.archive.cluster.connection import connected
from fastfgssl.archive.cluster.ray_pool import RayPool


class Cluster:
    """A head that does no work, so that drivers have a node of their own, and two nodes of one CPU."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, shutdown_at_exit=True
        )
        self.address = self._cluster.address
        self.nodes: list = []
        self.complete(2)

    def complete(self, number: int) -> None:
        """Starts nodes until there are so many."""
        while len(self.nodes) < number:
            self.nodes.append(self._cluster.add_node(num_cpus=1))

    def kill(self, node: object) -> None:
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def at_work(self) -> list:
        """Nodes on which processes of ours have begun to work."""
        return [node for node in self.nodes if any("forkserver" in name for name in processes_below(raylet(node)))]

    def is_left_alone(self) -> bool:
        """Whether no process of ours is there."""
        names = [name for node in self.nodes for name in processes_below(raylet(node))]
        return not any("Station" in name or "forkserver" in name for name in names)

    def close(self) -> None:
        ray.shutdown()  # which a test that failed may not have done
        self._cluster.shutdown()


def raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def processes_below(pid: int) -> list[str]:
    """Command lines of a process's descendants."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                found.append(Path(f"/proc/{child}/cmdline").read_bytes().decode())
            except OSError:  # gone meanwhile
                continue
            found += processes_below(int(child))
    return found


@pytest.fixture(scope="module")
def started() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, TESTS))))
        patch.setenv("RAY_worker_niceness", "0")  # tests beside these would keep its workers waiting
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster()
        yield cluster
        cluster.close()


@pytest.fixture
def cluster(started) -> Cluster:
    started.complete(1)
    return started


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_repeated(tmp_path_factory.mktemp("ray") / "source")


def options(source: Path, out: Path, **others: object) -> PrepareOptions:
    key = fixed_key(out.parent / "key")
    return PrepareOptions(sources=[source], out=out, key=key, **{"shard_size": 0.05, "workers": 2} | others)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "archive"
    prepare(options(source, out))
    return contents(out)


@pytest.mark.slow
def test_a_node_that_is_killed_costs_nothing(cluster, source, whole, tmp_path, caplog):
    out, seen = tmp_path / "archive", []
    cluster.complete(2)

    def kill(progress: object) -> None:
        if not seen:
            cluster.kill(cluster.at_work()[0])  # which has been given more than the chunk that is done
        seen.append(progress)

    terminate = signal.getsignal(signal.SIGTERM)
    prepare(options(source, out, engine="ray", ray_address=cluster.address), kill)
    assert contents(out) == whole
    (warning,) = caplog.records
    assert "lost the node" in warning.message
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert signal.getsignal(signal.SIGTERM) == terminate
    wait_until(cluster.is_left_alone)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_and_plain_workers_go_on(cluster, source, whole, tmp_path):
    out = tmp_path / "archive"
    command = [sys.executable, TOOLS / "prepare.py", source, "--out", out, "--shard-size", "0.05", "--engine", "ray"]
    key = fixed_key(tmp_path / "key")
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    run = subprocess.Popen(
        [*map(str, command), "--key", str(key)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    parts = out.with_name("archive.partial") / "parts"
    wait_until(lambda: run.poll() is not None or list(parts.glob("[!.]*")))
    run.send_signal(signal.SIGKILL)
    said, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, said
    assert not out.exists()
    made = sorted(path.name for path in parts.glob("[!.]*"))
    wait_until(cluster.is_left_alone)
    assert made

    prepare(options(source, out))
    assert contents(out) == whole


@pytest.mark.slow
def test_what_kills_its_worker_costs_itself_alone(cluster):
    deaths: list[Death] = []

    def without_the_guilty(death: Death) -> tuple:
        deaths.append(death)
        return tuple(item for number, item in enumerate(death.task) if number != death.item)

    tasks = [("a", signal.SIGKILL, "b"), ("c",), ("d", "hang"), (signal.SIGSEGV, "e"), ("f",)]
    with connected(cluster.address):
        pool = RayPool(Act(), workers=None, max_seconds=1, check=str)
        results = list(run_in(pool, tasks, after_death=without_the_guilty))
        wait_until(cluster.is_left_alone)
        assert sorted(results) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
        assert {(death.reason, death.item, death.stage, death.timed_out) for death in deaths} == {
            ("killed its worker (SIGKILL)", 1, 7, False),
            ("took more than 1 s", 1, 7, True),
            ("killed its worker (SIGSEGV)", 0, 7, False),
        }


@pytest.mark.slow
def test_what_hinders_a_node_or_its_workers_is_raised(cluster, monkeypatch):
    def run(*tasks: tuple) -> None:
        pool = RayPool(Act(), workers=1, max_seconds=1, check=str)
        list(run_in(pool, tasks, after_death=lambda death: death.task))

    with connected(cluster.address):
        with pytest.raises(OSError, match="No space left on device"):
            run(("disk full",))
        monkeypatch.setattr("fastfgssl.archive.cluster.ray_pool.versions_here", lambda: {"fastfgssl": "0.0.1"})
        with pytest.raises(UserError, match=r"^the node .* of the Ray cluster has fastfgssl .*, this machine 0\.0\.1"):
            run(("a",))


@pytest.mark.slow
def test_nodes_that_join_later_do_the_rest(cluster, source, whole, tmp_path, caplog):
    seen = []

    def replace_all(progress: object) -> None:
        if not seen:
            for node in list(cluster.nodes):
                cluster.kill(node)
            cluster.complete(1)
        seen.append(progress)

    prepare(options(source, tmp_path / "archive", engine="ray", ray_address=cluster.address), replace_all)
    assert contents(tmp_path / "archive") == whole
    assert len(caplog.records) in (1, 2)


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_on_the_cluster(cluster, source, tmp_path):
    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(options(source, tmp_path / "archive", engine="ray", ray_address=cluster.address), interrupt)
    assert not (tmp_path / "archive").exists()
    wait_until(cluster.is_left_alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "ray"], "--engine ray needs a Ray cluster that runs: start one by `ray start --head`"),
        (["--engine", "ray", "--ray-address", "local"], "starts no cluster"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1 (Connection ref"),
        (["--engine", "ray", "--ray-address", "ray://127.0.0.1:1"], "is the address for Ray's clients"),
        (["--engine", "ray", "--part", "1/2"], "leave out --part"),
        (["--ray-address", "127.0.0.1:1"], "give that too"),
    ],
)
def test_without_a_cluster_one_line_says_what_to_do(arguments, said, source, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run_here(main, source, "--out", tmp_path / "archive", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_another_program_at_the_address_is_no_cluster():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad request\r\n\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match=f"^what answers at {address} is not Ray's port"), connected(address):
            pass
        thread.join()
