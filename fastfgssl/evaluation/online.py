"""Scores of the network while it trains: view matching, and kNN where the archive has labels."""

from __future__ import annotations

import logging
import sys

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.philox import Use, permutations, random_words
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.matching import matching_accuracy
from fastfgssl.evaluation.scores import balanced_accuracy
from fastfgssl.evaluation.split import labelled_split, split_samples
from fastfgssl.models import Network
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.hooks import Hook, Moment, Run

log = logging.getLogger(__name__)

_FEATURES = ("all", "backbone")  # of those that the network has
_BATCH = 64


class OnlineScores(Hook):
    """Adds `score_matching_NAME` and `score_knn_NAME` to what is reported, NAME being the features that are compared.

    At step 0, after each `evaluate.every` steps, and at the end, on at most `evaluate.images` images of the archive's
    scoring split, and for kNN as many of its training split. The first rank scores while the others wait, for at most
    `train.timeout`; batch norms use their running averages. Scores of so few images show a trend; for a verdict there
    is `fastfgssl evaluate`.
    """

    wants_logs = True

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._scoring = np.empty(0, np.int64)

    @property
    def images(self) -> int:
        """How many images are scored; 0 if none are."""
        return len(self._scoring)

    def begin(self, run: Run) -> None:
        config = run.config.evaluate
        self._run = run
        self.every = config.every or sys.maxsize
        if not config.every:
            return
        if not isinstance(run.objective.model, Network):
            raise UserError(f"evaluate.every: the network of {run.config.objective} has no features; set it to 0")
        self._model = run.objective.model
        self._scoring = self._sample(split_samples(self._archive).val)
        if len(self._scoring) < 2:
            raise UserError(f"evaluate.every: {self._archive.path} has fewer than two images that score; set it to 0")
        self._labelled = None
        if self._archive.has_column("label"):
            try:
                split, labels = labelled_split(self._archive)
            except UserError as error:  # labels that cannot be scored are no reason not to train
                log.warning("no kNN scores while training: %s", error)
            else:
                self._labelled = self._sample(split.train), self._sample(split.val), labels

    def __call__(self, moment: Moment) -> None:
        if not self._run.config.evaluate.every or not self._run.world.is_main:
            return
        # not all of it need be in training: an objective may keep a part frozen
        was_training = [(module, module.training) for module in self._model.modules()]
        try:
            extractor = FeatureExtractor(self._model, self._run.config, self._archive, self._run.world.device, _BATCH)
            with torch.random.fork_rng(devices=[]):
                moment.logs.update(self._score(extractor))
        finally:
            for module, training in was_training:
                module.training = training

    def _score(self, extractor: FeatureExtractor) -> dict[str, float]:
        views = extractor.views(self._scoring, seed=0)
        scores = {
            f"score_matching_{name}": matching_accuracy(views.puzzle[name], views.anchor[name], device=extractor.device)
            for name in _FEATURES
            if name in views.anchor
        }
        if self._labelled is None:
            return scores
        train_ids, val_ids, labels = self._labelled
        train_ids, train = extractor.plain(train_ids)
        val_ids, val = extractor.plain(val_ids)
        for name in _FEATURES:
            if name not in train:
                continue
            shares = knn_probabilities(
                train[name],
                torch.from_numpy(labels[train_ids]),
                val[name],
                num_classes=len(self._archive.classes),
                device=extractor.device,
            )
            scores[f"score_knn_{name}"] = balanced_accuracy(labels[val_ids], shares.argmax(dim=1).numpy())
        return scores

    def _sample(self, ids: np.ndarray) -> np.ndarray:
        """At most `evaluate.images` of the samples, always the same."""
        limit = self._run.config.evaluate.images
        if len(ids) <= limit:
            return ids
        words = random_words(0, 0, np.zeros(1, np.int64), Use.ONLINE_SAMPLE, len(ids))
        return np.sort(ids[permutations(words)[0][:limit]])
