"""Scores of a classifier on validation images while it trains; keeps the best weights, ends what no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any, get_args

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.evaluate import Metric
from fastfgssl.config.files import config_to_values
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.tallies import measure
from fastfgssl.evaluation.training_samples import TrainingSamples
from fastfgssl.training.hooks import Hook, Moment, Run
from fastfgssl.training.saving import BEST, checkpoints_of, find_best, save_best

log = logging.getLogger(__name__)

_BATCH = 128


class Validation(Hook):
    """Adds `val_accuracy`, `val_METRIC` ... to what is reported, and keeps the weights with the best `evaluate.metric`.

    After each `evaluate.every` steps, an epoch by default, and at the end. The first rank scores, the others wait. All
    that it remembers is in checkpoints/best.pt, so that a run which is started again goes on as if it had not ended.
    It is written, found again and waited for as checkpoints are.
    """

    wants_logs = True

    def __init__(self, archive: Archive, samples: TrainingSamples) -> None:
        self._archive, self._samples = archive, samples
        self._best_step, self._best = 0, -math.inf
        self._is_elsewhere = False  # in the fallback
        self._satisfied = False

    @property
    def is_satisfied(self) -> bool:
        return self._satisfied

    def begin(self, run: Run) -> None:
        config = run.config
        self._run = run
        epoch = math.ceil(run.num_samples / config.train.batch_size)
        self.every = config.evaluate.every or epoch
        if run.world.is_main and (unseen := self._samples.unvalidated(self._archive.classes)):
            log.warning("no image that validates is of class %s: scores are of the other classes", ", ".join(unseen))
        if run.world.is_main and not run.is_new:
            self._remember()
            self._decide(run.start)

    def __call__(self, moment: Moment) -> None:
        if moment.step == 0 or not self._run.world.is_main:
            return
        scores = self._score()
        moment.logs.update({f"val_{name}": value for name, value in scores.items()})
        score = scores[self._run.config.evaluate.metric]
        if score > self._best:  # never so for one that is not a number
            self._best_step, self._best = moment.step, score
            self._keep(self._state(moment.step, score))
        elif self._is_elsewhere:
            self._remember()
        self._decide(moment.step)

    def _remember(self) -> None:
        """Takes over the best score of earlier starts; without their file the next score is the best again."""
        found = find_best(self._run.config)
        if found is None:
            return
        path, state = found
        self._best_step, self._best = state["step"], state.get("score", -math.inf)
        if path.name != BEST:  # what there was after it is lost: patience begins anew
            self._best_step = self._run.start
        if path != checkpoints_of(self._run.config) / BEST:
            self._keep(state)

    def _score(self) -> dict[str, float]:
        run = self._run
        network: Any = run.objective.scored
        was_training = [(module, module.training) for module in network.modules()]
        try:
            with torch.random.fork_rng(devices=[]):
                extractor = FeatureExtractor(network, run.config, self._archive, run.world.device, _BATCH)
                ids, probabilities = extractor.probabilities(self._samples.validation)
        finally:
            for module, training in was_training:
                module.training = training
        wanted, classes = run.config.evaluate.metric_classes, self._archive.classes
        if not np.isfinite(probabilities).all():  # weights that diverged: the loop says so
            return dict.fromkeys(get_args(Metric), math.nan)
        measured = measure(self._samples.labels[ids], probabilities)
        scores = {name: float(measured[name]) for name in get_args(Metric)}
        if wanted:
            scores["macro_auroc"] = float(np.mean([measured["auroc"][classes.index(name)] for name in wanted]))
        return scores

    def _state(self, step: int, score: float) -> dict[str, Any]:
        run = self._run
        return {
            "step": step,
            "score": score,
            "metric": run.config.evaluate.metric,
            "model": run.objective.scored.state_dict(),
            "objective": {},
            "optimizer": {},
            "scaler": {},
            "config": config_to_values(run.config),
            "archive": self._archive.fingerprint,
        }

    def _keep(self, state: dict[str, Any]) -> None:
        config = self._run.config
        path = save_best(config, state, seconds=config.train.pause(self._run.world.size))
        self._is_elsewhere = path.parent != checkpoints_of(config)

    def _decide(self, step: int) -> None:
        """Whether it has been long enough since the best score."""
        evaluate = self._run.config.evaluate
        # a best step beyond this one is of a run that was killed after it, and will be found again
        waited = max(0, step - self._best_step) // self.every
        self._satisfied = bool(evaluate.patience) and self._best > -math.inf and waited >= evaluate.patience
        if self._satisfied:
            log.info(
                "no better %s than %.4g since step %d: ending at step %d",
                evaluate.metric,
                self._best,
                self._best_step,
                step,
            )
