"""The protocol of a fine-tuned network: its own classifiers, on images that it has not learned from.

Those may be of another archive, such as another hospital's: nothing of it trains, so that every labelled image may
score. What the network has learned from is then looked up in the archive of its fine-tuning, where that is there.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.opening import open_archive
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.linear_probe import linear_probe
from fastfgssl.evaluation.near_duplicates import Thumbnails, find_overlap
from fastfgssl.evaluation.pretrained import Pretrained
from fastfgssl.evaluation.report import Fit, Report, classification_report
from fastfgssl.evaluation.split import ScoringSplit, Split, groups_of, left_out, scoring_samples
from fastfgssl.evaluation.training_samples import TrainingSamples, training_samples
from fastfgssl.runtime.errors import UserError

log = logging.getLogger(__name__)


class Learned(NamedTuple):
    """What a network was fine-tuned on."""

    classes: tuple[str, ...]
    images_of_class: tuple[int, ...]
    """How many images of each of the K classes it has learned from."""
    fingerprint: str
    """Of the archive that they are of."""
    archive: Archive | None
    """That archive; None where it is not there."""
    samples: TrainingSamples | None
    """What of it trained and validated."""


def learned_by(network: Pretrained, archive: Archive, trained_on: str | Path | None = None) -> Learned:
    """What a fine-tuned network has learned from, looked for in `archive`, in `trained_on`, and where it was then.

    Raises `UserError` if `trained_on` is not the archive that the network was fine-tuned on.
    """
    config = network.config
    source = archive if trained_on is None and archive.fingerprint == network.archive else None
    if source is None:
        try:
            source = _source_of(network, trained_on)
        except UserError as error:
            if trained_on is not None:
                raise
            log.warning(
                "%s is another archive than the network was fine-tuned on, or was changed since; which of its images"
                " were learned from is not known, unless --trained-on names the archive of the fine-tuning: %s",
                archive.path,
                error,
            )
    samples = None if source is None else training_samples(source, config.data, seed=config.seed)
    supervised = config.supervised
    return Learned(supervised.classes, supervised.class_counts, network.archive, source, samples)


def _source_of(network: Pretrained, trained_on: str | Path | None) -> Archive:
    data = network.config.data
    if trained_on is None and "://" in data.path:
        raise UserError(f"{data.path} is not read unless it is named")
    source = open_archive(data if trained_on is None else replace(data, path=str(trained_on)))
    if source.fingerprint != network.archive:
        raise UserError(f"{source.path} is not, or no longer, the archive that the network was fine-tuned on")
    return source


def run_finetuned(
    extractor: FeatureExtractor, archive: Archive, learned: Learned, scoring: ScoringSplit | None = None
) -> Report:
    """Scores the network's own classifiers: each by itself, as `sum` their prediction together, and floors.

    scoring: the split that scores. None takes what validated, or of another archive what `scoring_samples` does. The
    floor `colour` is the linear probe of colour statistics of what the network has learned from. Raises `UserError` if
    it has learned from images, or groups, that would score, or if the archive has classes that it does not know.
    """
    is_own = archive.fingerprint == learned.fingerprint
    samples = learned.samples
    if is_own and samples is not None:
        split, labels = _own_split(archive, learned.classes, samples, scoring)
    else:
        split, labels = scoring_samples(archive, learned.classes, scoring)
        if scoring is None:
            log.warning(
                "%d of the %d labelled images of %s score (%s); if none was learned from, --split all scores every one",
                *(len(split.val), (labels >= 0).sum(), archive.path, split.name),
            )
    marks = Thumbnails(archive)
    val_ids, val = extractor.colours(split.val, marks)
    _, probabilities = extractor.classifier_probabilities(val_ids)
    shown = split._replace(val=val_ids)
    if learned.archive is None or samples is None:
        of_class = np.array(learned.images_of_class)
        fit = Fit(learned.fingerprint, np.repeat(np.arange(len(of_class)), of_class), 0)
        return classification_report(
            archive, "finetuned", shown, labels, probabilities, classes=learned.classes, fit=fit
        )
    of_source = extractor if is_own else extractor.of(learned.archive)
    train_marks, chosen = Thumbnails(learned.archive), {}
    train_ids, train = of_source.colours(samples.train, train_marks)
    train_labels, groups = samples.labels[train_ids], groups_of(learned.archive, train_ids)
    try:
        probe = linear_probe(
            train, train_labels, groups, val, num_classes=len(learned.classes), device=extractor.device
        )
        probabilities["colour"], chosen["colour"] = probe.probabilities, {"C": probe.strength}
    except UserError as error:  # a classifier can be scored where a probe of colours cannot be fitted
        log.info("without the floor of colours: %s", error)
    return classification_report(
        archive,
        "finetuned",
        shown,
        labels,
        probabilities,
        classes=learned.classes,
        fit=Fit(learned.fingerprint, train_labels, len(np.unique(groups))),
        overlap=find_overlap(train_marks, marks, device=extractor.device),
        chosen=chosen,
    )


def _own_split(
    archive: Archive, classes: tuple[str, ...], samples: TrainingSamples, scoring: ScoringSplit | None
) -> tuple[Split, np.ndarray]:
    """What scores of the archive that the network was fine-tuned on, and the labels of all its samples."""
    if scoring is None:
        val, labels, name = samples.validation, samples.labels, samples.name
    else:
        (_, val, name, _), labels = scoring_samples(archive, classes, scoring)
    known = np.isin(groups_of(archive, val), groups_of(archive, samples.train))
    if known.any():
        raise UserError(
            f"{archive.path}: the network was fine-tuned on {known.sum()} of the {len(val)} images of split {name}, or"
            " on others of their groups; without --split those score that it did not see"
        )
    used = np.concatenate([samples.train, val])
    return Split(samples.train, val, name, left_out(archive, used, labels)), labels
