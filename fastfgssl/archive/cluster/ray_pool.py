"""The nodes of a Ray cluster as one pool of workers. Nodes may come and go."""

from __future__ import annotations

import itertools
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import available_resources_per_node  # Ray tells it nowhere else without its dashboard
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fastfgssl.archive.building.worker import NO_ITEM, Death, Function
from fastfgssl.archive.building.workers import Done
from fastfgssl.archive.cluster.station import Station, Turn, versions_here
from fastfgssl.runtime.errors import UserError

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # seconds without news
_NODES_EVERY = 2.0  # seconds between two looks at which nodes there are
_STARTS = 3  # of a node whose station ends before it is ready
_TELL_AFTER, _GIVE_UP_AFTER = 30.0, 600.0  # seconds without any station


class _Node:
    """A node of the cluster, and its station."""

    def __init__(self, id: str, name: str, station: Any, workers: int, *, is_first: bool) -> None:
        self.id, self.name, self.station, self.workers, self.is_first = id, name, station, workers, is_first
        self.is_ready = False
        self.call: Any = station.problem.remote()
        """What it was asked last and has not answered yet."""
        self.given: dict[int, Any] = {}
        """Tasks by their numbers."""
        self.unsent: list[tuple[int, Any]] = []

    def room(self) -> int:
        """How many tasks it takes: more than it has workers, which then need not wait for an answer from here."""
        return self.workers + 1 + self.workers // 4 - len(self.given) if self.is_ready else 0


class RayPool:
    """Processes on all nodes with free CPUs, one a CPU or `workers` altogether: a `workers.Pool`.

    check: is pickled and called on each node; it returns what hinders the node, as what follows its name in a sentence.
    Of the nodes that are there at first, and where no other is at work, this is an error; of those that come later, a
    warning. Tasks of a node that is lost are deaths of their workers, at no item.
    """

    def __init__(
        self, function: Function, *, workers: int | None, max_seconds: float, check: Callable[[], str]
    ) -> None:
        self._work = pickle.dumps((function, max_seconds, check))
        self._workers = workers
        self._nodes: dict[str, _Node] = {}
        self._refused: set[str] = set()
        self._dead_starts: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._looked = self._alone_since = time.monotonic()
        self._told = False
        self._look_for_nodes(is_first=True)

    @property
    def busy(self) -> bool:
        return any(node.given for node in self._nodes.values())

    def room(self) -> int:
        return sum(max(node.room(), 0) for node in self._nodes.values())

    def give(self, task: Any) -> None:
        node = max(self._nodes.values(), key=lambda node: node.room() / node.workers)
        number = next(self._numbers)
        node.given[number] = task
        node.unsent.append((number, task))

    def collect(self) -> list[Done | Death]:
        if time.monotonic() > self._looked + _NODES_EVERY:
            self._look_for_nodes()
        self._be_patient()
        for node in self._nodes.values():
            if node.call is None and node.given:
                node.call, node.unsent = node.station.turn.remote(node.unsent), []
        calls = {node.call: node for node in self._nodes.values() if node.call is not None}
        if not calls:
            time.sleep(_LOOK_EVERY)
            return []
        answered, _ = ray.wait(list(calls), num_returns=1, timeout=_LOOK_EVERY)
        more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [event for call in dict.fromkeys([*answered, *more]) for event in self._answer(calls[call])]

    def close(self) -> None:
        for node in self._nodes.values():
            self._end(node)
        self._nodes.clear()

    def _answer(self, node: _Node) -> list[Done | Death]:
        call, node.call = node.call, None
        try:
            answer = ray.get(call)
        except RayError as error:
            return self._lost(node, error)
        if not node.is_ready:
            node.is_ready = not answer
            if answer:
                self._refuse(node, answer)
            return []
        turn: Turn = answer
        if isinstance(turn.error, UserError):
            raise UserError(f"on the node {node.name}: {turn.error}")
        if turn.error is not None:
            raise turn.error
        events: list[Done | Death] = []
        for number, what in turn.events:
            task = node.given.pop(number)
            events.append(what._replace(task=task) if isinstance(what, Death) else Done(task, what))
        return events

    def _lost(self, node: _Node, error: RayError) -> list[Done | Death]:
        """The deaths of its workers."""
        if not node.is_ready:
            self._dead_starts[node.id] += 1
            if getattr(error, "actor_init_failed", False) or self._dead_starts[node.id] == _STARTS:
                self._refuse(node, f"cannot begin: {_last_line(error)}")
                return []
        self._end(node)
        del self._nodes[node.id]
        if node.given:
            log.warning("lost the node %s: other workers do what it was at (%s)", node.name, _last_line(error))
        return [Death(task, NO_ITEM, 0, f"the node {node.name} was lost", False) for task in node.given.values()]

    def _refuse(self, node: _Node, why: str) -> None:
        text = f"the node {node.name} of the Ray cluster {why}"
        if node.is_first or not any(other.is_ready for other in self._nodes.values()):
            raise UserError(text)
        log.warning("%s; it is left out", text)
        self._end(node)
        del self._nodes[node.id]
        self._refused.add(node.id)

    def _look_for_nodes(self, *, is_first: bool = False) -> None:
        """Starts a station on each node that has none and has free CPUs."""
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1}
        free = available_resources_per_node()
        for id, node in alive.items():
            workers = int(free.get(id, {}).get("CPU", 0))
            if self._workers is not None:
                left = self._workers - sum(node.workers for node in self._nodes.values())
                workers = min(workers, left, -(-self._workers // len(alive)))
            if workers < 1 or id in self._nodes or id in self._refused:
                continue
            station = (
                ray.remote(Station)
                .options(
                    num_cpus=workers,
                    max_restarts=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=id, soft=False),
                )
                .remote(versions_here(), self._work, workers)
            )
            host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
            name = host if host == address else f"{host} ({address})"
            self._nodes[id] = _Node(id, name, station, workers, is_first=is_first)

    def _be_patient(self) -> None:
        """Raises UserError if no station has been there for long."""
        if any(node.is_ready for node in self._nodes.values()):
            self._alone_since, self._told = time.monotonic(), False
            return
        seconds = time.monotonic() - self._alone_since
        what = "no node of the Ray cluster has a free CPU, or none has begun yet"
        if seconds > _GIVE_UP_AFTER:
            raise UserError(f"{what}, for {seconds:.0f} s: see `ray status`; the same command goes on from here")
        if seconds > _TELL_AFTER and not self._told:
            self._told = True
            log.warning("%s: waiting, see `ray status`", what)

    @staticmethod
    def _end(node: _Node) -> None:
        with suppress(RayError):
            ray.kill(node.station)


def _last_line(error: RayError) -> str:
    """What Ray says of how it came about."""
    text = error.error_msg if isinstance(error, RayActorError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].split(". ")[0] if lines else type(error).__name__
