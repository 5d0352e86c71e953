"""Trains and scores every objective under one configuration, over seeds, at equal images and at equal seconds.

Equal images: every run is as long as the configuration says. Equal seconds: every objective has the training time that
the fastest took, or one that is given, and in it makes a run of its own whose schedule ends when the time does: a
checkpoint from the middle of a longer run would still have the learning rate of its middle, which only the fastest is
spared. How many steps fit is told by the objective's first seed at equal images; where that is the length of those runs
but for 5 %, they are taken.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from fastfgssl.archive.manifest import Archive
from fastfgssl.comparison.cost import PeakMemory, read_cost
from fastfgssl.comparison.entrants import (
    IMAGENET,
    NOT_TRAINED,
    UNTRAINED,
    config_of,
    network_of,
    of_length,
    require_entrants,
)
from fastfgssl.comparison.results import Member, Results
from fastfgssl.comparison.scored import Scoring
from fastfgssl.config.files import config_to_values, load_config
from fastfgssl.config.schema import Config
from fastfgssl.config.section import require
from fastfgssl.data.opening import open_archive
from fastfgssl.evaluation.linear_probe import folds_of
from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.evaluation.protocols import Protocol
from fastfgssl.evaluation.report import BatchStatistics
from fastfgssl.evaluation.split import draw_fraction, groups_of, labelled_split
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.errors import UserError, require_one_of
from fastfgssl.runtime.files import check_writable, sha256_of, user_path, write_json
from fastfgssl.runtime.versions import versions
from fastfgssl.training.checkpoint import list_checkpoints
from fastfgssl.training.hooks import Hook
from fastfgssl.training.saving import checkpoints_of

log = logging.getLogger(__name__)
_SAME_LENGTH = 0.05
_PROTOCOLS = ("knn", "linear")  # on frozen features, with labels


class Outcome(NamedTuple):
    results: dict[str, Any] | None
    """What is in `comparison.json`; None if the comparison was stopped."""
    stopped_by: int | None
    """The signal that stopped it; None if it is complete."""


def compare(
    config: Config,
    objectives: Sequence[str],
    *,
    out: str | Path,
    seeds: int = 3,
    protocol: Protocol = "knn",
    batch_statistics: BatchStatistics = "stored",
    label_fraction: float = 1.0,
    seconds: float | None = None,
    hooks: Callable[[str], Sequence[Hook]] = lambda run: (),
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Outcome:
    """Compares objectives of pretraining, and `untrained` and `imagenet`, and writes `out`/comparison.json.

    seeds: how many, from `config.seed` on. label_fraction: of each class's labelled training groups that the protocol
    learns from; each seed draws its own, from which all networks of that seed learn. seconds: of training that each
    has, None for what the fastest took. hooks: those of the run of that name. stop_signal: asked before each step and
    each score. The same call again goes on, and makes nothing again that is done. Raises `UserError` before any
    training for what cannot be compared.
    """
    require(seeds >= 1, "seeds", seeds, "1 or more")
    require(seconds is None or seconds > 0, "seconds", seconds, "greater than 0")
    require_one_of("protocol", protocol, _PROTOCOLS)
    require_one_of("batch_statistics", batch_statistics, get_args(BatchStatistics))
    require_alone("a comparison")
    out = user_path(out)
    require_entrants(config, objectives)
    archive = open_archive(config.data)
    if not archive.has_column("label"):
        raise UserError(f"{archive.path} has no labels, which score a comparison: prepare it with --labels")
    _require_labels(archive, protocol, label_fraction, range(config.seed, config.seed + seeds))
    check_writable(out / "comparison.json")
    scoring = Scoring(archive, protocol, batch_statistics, config.train.device, label_fraction)
    comparison = _Comparison(config, out / "runs", scoring, hooks, stop_signal)
    try:
        results = comparison.results(objectives, range(config.seed, config.seed + seeds), seconds)
    except _Stopped as stopped:
        log.info("the comparison is stopped; run the same command to go on")
        return Outcome(None, stopped.number)
    write_json(out / "comparison.json", results)
    return Outcome(results, None)


def _require_labels(archive: Archive, protocol: Protocol, label_fraction: float, seeds: Sequence[int]) -> None:
    """Raises `UserError` unless the protocol can learn from what each seed draws of the labels."""
    split, labels = labelled_split(archive)
    of_train, groups = labels[split.train], groups_of(archive, split.train)
    for seed in seeds:
        drawn = draw_fraction(split.train, of_train, groups, label_fraction, seed, classes=archive.classes)
        if protocol == "linear":
            folds_of(labels[drawn], groups_of(archive, drawn))


class _Stopped(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Comparison:
    def __init__(
        self,
        config: Config,
        runs: Path,
        scoring: Scoring,
        hooks: Callable[[str], Sequence[Hook]],
        stop_signal: Callable[[], int | None],
    ) -> None:
        self._config, self._runs, self._scoring = config, runs, scoring
        self._hooks, self._stop_signal = hooks, stop_signal
        self._results = Results(scoring.archive.classes)
        self._steps = config.train.num_steps(scoring.archive.num_samples)

    def results(self, objectives: Sequence[str], seeds: Sequence[int], seconds: float | None) -> dict[str, Any]:
        members: dict[str, list[Member]] = {name: [] for name in objectives}
        for seed in seeds:  # outermost: what is stopped early has something of each
            for name in objectives:
                # of ImageNet there is one network, which differs by what labels it is scored with
                if name != IMAGENET or seed == seeds[0] or self._scoring.label_fraction < 1:
                    members[name].append(self._member(name, seed, self._steps))
        report = members[objectives[0]][0].scored.report
        return {
            "objectives": list(objectives),
            "seeds": list(seeds),
            "protocol": self._scoring.protocol,
            "batch_statistics": self._scoring.batch_statistics,
            "label_fraction": self._scoring.label_fraction,
            "archive": {"path": str(self._scoring.archive.path), "fingerprint": self._scoring.archive.fingerprint},
            **{key: report[key] for key in ("split", "val_samples", "val_groups", "fit_samples", "classes", "overlap")},
            "floors": report["floors"] | {"colour": report["results"]["colour"]},
            "equal_images": {
                "images": self._steps * self._config.train.batch_size,
                **self._results.of(members),
            },
            "equal_seconds": self._equal_seconds(members, seconds),
            "config": config_to_values(self._config),
            "versions": versions(),
        }

    def _equal_seconds(self, members: dict[str, list[Member]], seconds: float | None) -> dict[str, Any] | None:
        """None where nothing is trained."""
        took = {name: runs[0].cost.seconds for name, runs in members.items() if runs[0].cost is not None}
        if not took:
            return None
        budget = min(took.values()) if seconds is None else seconds
        lengths = {name: self._length(budget / spent) for name, spent in took.items()}
        shorter: dict[str, list[Member]] = {name: [] for name in members}
        for place in range(max(map(len, members.values()))):
            for name, runs in members.items():
                if place < len(runs):
                    is_same = lengths.get(name, self._steps) == self._steps
                    again = runs[place] if is_same else self._member(name, runs[place].seed, lengths[name])
                    shorter[name].append(again)
        return {"seconds": budget, **self._results.of(shorter)}

    def _length(self, factor: float) -> int:
        """Steps of a run that takes `factor` times the seconds of one at equal images."""
        return self._steps if abs(factor - 1) <= _SAME_LENGTH else max(1, int(factor * self._steps))

    def _member(self, name: str, seed: int, steps: int) -> Member:
        if number := self._stop_signal():
            raise _Stopped(number)
        if name in NOT_TRAINED:
            folder = self._runs / (f"{name}-seed-{seed}" if name == UNTRAINED else name)
            values = config_to_values(self._config)
            of_network = {key: value for key, value in values.items() if key.startswith(("model.", "data."))}
            del of_network["data.path"]  # where the archive is, of which the fingerprint tells what it is
            identity = {"name": name, "seed": seed, **of_network}
            scored = self._scoring.scored(folder, lambda: network_of(self._config, name, seed), identity, seed)
            return Member(name, seed, 0, None, scored)
        folder = self._runs / f"{name}-seed-{seed}{'' if steps == self._steps else f'-steps-{steps}'}"
        config = config_of(self._config, name, seed, folder)
        if steps != self._steps:
            config = of_length(config, steps, self._scoring.archive.num_samples)
        checkpoint = self._train(config, steps)
        if number := self._stop_signal():
            raise _Stopped(number)
        identity = {"checkpoint": sha256_of(checkpoint)}
        scored = self._scoring.scored(folder, lambda: load_pretrained(checkpoint), identity, seed)
        return Member(name, seed, steps, read_cost(config), scored)

    def _train(self, config: Config, steps: int) -> Path:
        """Makes a run, or what is left of it; its last checkpoint."""
        folder, kept = Path(config.output), Path(config.output) / "config.yaml"
        if list_checkpoints(checkpoints_of(config)) and kept.exists():
            length = load_config(kept).train.num_steps(self._scoring.archive.num_samples)
            if length != steps:  # as `train` would: it goes on from the end of another schedule
                raise UserError(
                    f"{folder} holds a run of {length} steps, this comparison has {steps}: choose another --out,"
                    " or delete that folder"
                )
        gc.collect()  # networks of earlier runs, which cycles may hold
        outcome = pretrain(config, hooks=[PeakMemory(), *self._hooks(folder.name)], stop_signal=self._stop_signal)
        if outcome.stopped_by:
            raise _Stopped(outcome.stopped_by)
        return outcome.checkpoint
