"""Frozen features of an archive's images, from a checkpoint, through the same DALI graph that training uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.config.section import require
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import GraphSpec, depth_of
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Slots
from fastfgssl.data.philox import Use, permutations, random_words
from fastfgssl.data.presets import PLAIN, Preset, find_preset
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.evaluation.batch_statistics import recompute_batch_statistics
from fastfgssl.evaluation.feature_rows import FeatureRows, Rows, SideBySide
from fastfgssl.evaluation.near_duplicates import Thumbnails
from fastfgssl.models import Network
from fastfgssl.models.classifier import SUM, logits_of
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError

_RECALIBRATION_IMAGES = 4096  # that batch statistics are recomputed from, at most
_RECALIBRATION_BATCH = 64


class ViewFeatures(NamedTuple):
    """Features of two views of N images, by name: float32 [N, D] each; row i of both shows sample `ids[i]`."""

    ids: np.ndarray
    anchor: dict[str, Rows]
    puzzle: dict[str, Rows]


class FeatureExtractor:
    """Computes features of one network for the samples of one archive.

    Features are those that the network gives (`Network.features`), and `all`, what its heads give side by side. They
    are kept on disk (feature_rows.py), since those of an archive may be larger than memory.
    """

    def __init__(self, model: Network, config: Config, archive: Archive, device: torch.device, batch_size: int) -> None:
        """model: on `device`; it is put into evaluation mode."""
        require(batch_size > 0, "batch size", batch_size, "greater than 0")
        self._model = model.eval()
        self._config, self._archive, self._device = config, archive, device
        self._batch_size = batch_size
        self._quarantine = Quarantine(archive.num_samples, max_bad_share=config.data.max_bad_share)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._device

    def of(self, archive: Archive) -> FeatureExtractor:
        """The same for samples of another archive."""
        return FeatureExtractor(self._model, self._config, archive, self._device, self._batch_size)

    def plain(self, ids: np.ndarray, thumbnails: Thumbnails | None = None) -> tuple[np.ndarray, dict[str, Rows]]:
        """Samples that decode among `ids`, and the features of each: the whole image, resized, nothing else.

        Adds `colour`: mean, standard deviation, 10th and 90th percentile of each channel, a floor for any network.
        thumbnails: those of the samples are added to it.
        """
        kept, found = [], _Kept()
        for shown, (images,) in self._batches(self._parts(ids), PLAIN, seed=0):
            kept.append(shown)
            found.append(self._features(images) | {"colour": _colour_statistics(images)})
            if thumbnails is not None:
                thumbnails.add(shown, images)
        return np.concatenate(kept), found.by_name()

    def colours(self, ids: np.ndarray, thumbnails: Thumbnails | None = None) -> tuple[np.ndarray, Rows]:
        """The same of `colour` alone, for which the network is not run."""
        kept, found = [], FeatureRows()
        for shown, (images,) in self._batches(self._parts(ids), PLAIN, seed=0):
            kept.append(shown)
            found.append(_colour_statistics(images))
            if thumbnails is not None:
                thumbnails.add(shown, images)
        return np.concatenate(kept), found

    def probabilities(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples that decode among `ids`, and the probability of each class: float64 [N, K].

        Of a network that classifies: the softmax of its predictions of the whole image.
        """
        kept, by_name = self.classifier_probabilities(ids)
        return kept, by_name[SUM]

    def classifier_probabilities(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The same of each classifier of the network, by its name, and as `sum` of all together."""
        kept: list[np.ndarray] = []
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        network: Any = self._model
        for shown, (images,) in self._batches(self._parts(ids), PLAIN, seed=0):
            kept.append(shown)
            with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
                logits = logits_of(network, images.to(self._device).float(), flips=self._config.supervised.flips)
            for name, values in logits.items():
                found[name].append(values.double().softmax(dim=1).cpu().numpy())
        return np.concatenate(kept), {name: np.concatenate(parts) for name, parts in found.items()}

    def views(self, ids: np.ndarray, *, seed: int) -> ViewFeatures:
        """Features of an anchor and of a puzzle view of each sample, distorted as in training under `seed`."""
        kept, anchors, puzzles = [], _Kept(), _Kept()
        for shown, (anchor, puzzle) in self._batches(self._parts(ids), find_preset(self._config.data.views), seed=seed):
            kept.append(shown)
            anchors.append(self._features(anchor))
            puzzles.append(self._features(puzzle))
        return ViewFeatures(np.concatenate(kept), anchors.by_name(), puzzles.by_name())

    def recompute_batch_statistics(self, ids: np.ndarray, *, seed: int) -> None:
        """Replaces the running statistics of every batch norm by those of (at most 4,096 of) the samples `ids`.

        The samples are drawn, and put into batches, in an order that `seed` shuffles; the batches are of 64 to 127
        samples whatever size features are computed in, so that the result depends on neither. See
        batch_statistics.py for what is computed. Raises `UserError` for fewer than two samples.
        """
        words = random_words(seed, 0, np.zeros(1, np.int64), Use.RECALIBRATION, len(ids))
        drawn = ids[permutations(words)[0][:_RECALIBRATION_IMAGES]]
        parts = np.array_split(drawn, max(1, len(drawn) // _RECALIBRATION_BATCH))
        recompute_batch_statistics(self._model, self._images_to_recalibrate(parts))

    def _images_to_recalibrate(self, parts: list[np.ndarray]) -> Iterator[torch.Tensor]:
        few = UserError(
            f"{self._archive.path}: recomputed batch statistics need two training images or more that decode"
        )
        if min(map(len, parts)) < 2:
            raise few
        for shown, (images,) in self._batches(parts, PLAIN, seed=0):
            if len(shown) < 2:
                raise few
            yield images.to(self._device).float()

    def _parts(self, ids: np.ndarray) -> list[np.ndarray]:
        return [ids[start : start + self._batch_size] for start in range(0, len(ids), self._batch_size)]

    def _batches(
        self, parts: list[np.ndarray], preset: Preset, *, seed: int
    ) -> Iterator[tuple[np.ndarray, list[torch.Tensor]]]:
        """(ids, views) for each of `parts`, samples in their order; those that do not decode are left out.

        views: the anchor, and the puzzle view unless `preset` is `PLAIN`. Raises `UserError` if no image decodes.
        """

        def slots(step: int) -> Slots:
            return Slots(parts[step], np.zeros(len(parts[step]), np.int64))

        needs = Needs(anchor=True, view=preset is not PLAIN)
        spec = GraphSpec.of(
            self._config, needs, World.alone(self._device), depth=depth_of(self._archive), preset=preset
        )
        spec = replace(spec, batch_size=max(map(len, parts)), half=False)
        some = False
        with Loader(
            self._archive, spec, slots, seed=seed, quarantine=self._quarantine, start=0, stop=len(parts)
        ) as loader:
            for step, batch in enumerate(loader):
                if found := self._quarantine.verdict:
                    raise UserError(f"{self._archive.path}: {found}", errno=found.errno)
                decoded = batch.ids == slots(step).ids
                if not decoded.any():
                    continue
                some = True
                rows = torch.from_numpy(np.flatnonzero(decoded))
                views = [view[rows] for view in (batch.anchor, batch.puzzle_view) if view is not None]
                yield batch.ids[decoded], views
        if not some:
            raise UserError(f"{self._archive.path}: none of the {sum(map(len, parts))} images to evaluate decodes")

    @torch.inference_mode()
    @torch.compiler.set_stance("force_eager")  # few images of many shapes are not worth compiling for
    def _features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._model.features(images.to(self._device).float())


class _Kept:
    """Features by name, as batches bring them."""

    def __init__(self) -> None:
        self._rows: dict[str, FeatureRows] = defaultdict(FeatureRows)

    def append(self, features: dict[str, torch.Tensor]) -> None:
        for name, values in features.items():
            self._rows[name].append(values)

    def by_name(self) -> dict[str, Rows]:
        heads = {name: rows for name, rows in self._rows.items() if name.startswith("head")}
        joined = {"all": SideBySide(list(heads.values()))} if heads else {}
        return {**heads, **joined, **self._rows}


def _colour_statistics(images: torch.Tensor) -> torch.Tensor:
    """[B, 4 C] of images [B, C, S, S]."""
    pixels = images.float().flatten(2)
    percentiles = torch.quantile(pixels, torch.tensor([0.1, 0.9], device=pixels.device), dim=2)
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2), *percentiles], dim=1).cpu()
