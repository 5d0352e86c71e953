"""Frozen features of an archive's images, from a checkpoint, through the same DALI graph that training uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fastfgssl.archive.manifest import Archive
from fastfgssl.checkpoint import load_checkpoint
from fastfgssl.config import STAGES, Config
from fastfgssl.config_files import config_from_values
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Slots
from fastfgssl.data.pipeline import GraphSpec
from fastfgssl.data.presets import PLAIN, Preset, find_preset
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.environment import available_cores
from fastfgssl.models import FGSSL, build_model

_LARGEST_RECALIBRATION = 4096  # images that batch statistics are recomputed from


class Pretrained(NamedTuple):
    model: FGSSL
    config: Config
    step: int  # training steps that the weights have seen


class Views(NamedTuple):
    """Features of two views of N images, by name: float32 [N, D] each; row i of both shows sample `ids[i]`."""

    ids: np.ndarray
    anchor: dict[str, torch.Tensor]
    puzzle: dict[str, torch.Tensor]


def load_pretrained(checkpoint: str | Path) -> Pretrained:
    """The network of a checkpoint, with the configuration that it was trained with. `UserError` if it is not one."""
    state = load_checkpoint(Path(checkpoint))
    config = config_from_values(state["config"])
    model = build_untrained(config, config.seed)
    model.load_state_dict(state["model"])
    return Pretrained(model, config, state["step"])


def build_untrained(config: Config, seed: int) -> FGSSL:
    """The network of `config` with random weights of its own seed: what a trained one is compared with."""
    torch.manual_seed(seed)
    return build_model(replace(config.model, weights="none"))


class FeatureExtractor:
    """Computes features of one network for the samples of one archive.

    Features are, for each image: `head 0`, `head 1`, `head 2` (pooled vectors of the hierarchical blocks), `all` (the
    three concatenated), and `backbone` (the global average of the last layer, as Barlow Twins is evaluated).
    """

    def __init__(self, model: FGSSL, config: Config, archive: Archive, device: torch.device, batch_size: int) -> None:
        self._model = model.to(device, memory_format=torch.channels_last).eval()
        self._config, self._archive, self._device = config, archive, device
        self._batch_size = batch_size

    def plain(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """Samples that decode among `ids`, and the features of each: the whole image, resized, nothing else.

        Adds `colour`: mean, standard deviation, 10th and 90th percentile of each channel, a floor for any network.
        """
        kept, parts = [], []
        for shown, images in self._batches(ids, PLAIN, seed=0):
            kept.append(shown)
            parts.append(self._features(images.anchor) | {"colour": _colour_statistics(images.anchor)})
        return np.concatenate(kept), _concatenated(parts)

    def views(self, ids: np.ndarray, *, seed: int) -> Views:
        """Features of an anchor and of a puzzle view of each sample, distorted as in training under `seed`."""
        kept, anchors, puzzles = [], [], []
        for shown, images in self._batches(ids, find_preset(self._config.data.views), seed=seed):
            kept.append(shown)
            anchors.append(self._features(images.anchor))
            puzzles.append(self._features(images.puzzle_view))
        return Views(np.concatenate(kept), _concatenated(anchors), _concatenated(puzzles))

    @torch.no_grad()
    def recompute_batch_statistics(self, ids: np.ndarray) -> None:
        """Replaces the running statistics of every batch norm by those of (at most 4,096 of) the samples `ids`."""
        norms = [module for module in self._model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
        self._model.train()
        for _, images in self._batches(ids[:_LARGEST_RECALIBRATION], PLAIN, seed=0):
            self._model(images.anchor.to(self._device).float(), STAGES)
        self._model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _batches(self, ids: np.ndarray, preset: Preset, *, seed: int) -> Iterator[tuple[np.ndarray, NamedTuple]]:
        """(ids, batch) for the samples `ids` in their order; samples that do not decode are left out."""
        size = self._batch_size

        def slots(step: int) -> Slots:
            part = ids[step * size : (step + 1) * size]
            return Slots(part, np.zeros(len(part), np.int64))

        data = self._config.data
        spec = GraphSpec(
            batch_size=size,
            image_size=data.image_size,
            preset=preset,
            grids=(),
            mean=data.mean,
            std=data.std,
            half=False,
            sixteen_bit=self._archive.is_sixteen_bit,
            device_id=self._device.index if self._device.type == "cuda" else None,
            threads=data.threads or available_cores(),
            prefetch=data.prefetch,
        )
        steps = -(-len(ids) // size)
        quarantine = Quarantine(self._archive.num_samples)
        loader = Loader(self._archive, spec, slots, seed=seed, quarantine=quarantine, start=0, stop=steps)
        for step, batch in enumerate(loader):
            decoded = batch.ids == slots(step).ids
            rows = torch.from_numpy(np.flatnonzero(decoded))
            yield batch.ids[decoded], batch._replace(anchor=batch.anchor[rows], puzzle_view=batch.puzzle_view[rows])

    @torch.inference_mode()
    def _features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = images.to(self._device).float()
        taps = self._model.backbone(images)
        pooled = [block(tap) for block, tap in zip(self._model.blocks, taps, strict=True)]
        features = {f"head {tap}": vector for tap, vector in enumerate(pooled)}
        features |= {"all": torch.cat(pooled, dim=1), "backbone": taps[-1].mean(dim=(2, 3))}
        return {name: value.float().cpu() for name, value in features.items()}


def _colour_statistics(images: torch.Tensor) -> torch.Tensor:
    """[B, 12] of images [B, 3, S, S]."""
    pixels = images.float().flatten(2)
    percentiles = torch.quantile(pixels, torch.tensor([0.1, 0.9], device=pixels.device), dim=2)
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2), *percentiles], dim=1).cpu()


def _concatenated(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
