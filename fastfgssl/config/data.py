"""Which images a run sees, and how they reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.preset_text import find_preset, text_of
from fastfgssl.config.section import Section, require

ViewSizes = Literal["relative", "pixels"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_THREADS = 1024  # cores of the largest machines
_MOST_PREFETCH = 128  # batches, each of them held in memory


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    section = "data"
    paths = frozenset({"path", "cache"})

    path: str
    """Folder of a prepared archive (fastfgssl prepare), or its URL in an object store, such as s3://bucket/archive."""
    cache: str = ""
    """Folder on a local disk for the shards of an archive in an object store, shared by the ranks of a machine."""
    cache_gib: float = 64.0
    """GiB that shards may take there; at least two windows of them, or the whole archive."""
    image_size: int = 224
    """Side of every view in pixels; divisible by every grid."""
    views: str = "paper"
    """View preset: paper, barlow, grayscale, dermoscopy, fundus, histology, radiograph or ultrasound, or FILE.yaml with
    one of yours, whose content then is the value (docs/views.md)."""
    view_sizes: ViewSizes = "relative"
    """What sizes in a preset are, such as the sigma of a blur: relative, stated for 224 pixels and scaled with
    image_size, or pixels of the view. Runs from before this key existed go on with pixels."""
    window: int = 16
    """Shards whose samples are shuffled together; more mixes better, fewer reads more sequentially."""
    threads: int = 0
    """Decoding threads of each rank; 0 takes the cores of this machine divided by its ranks."""
    prefetch: int = 2
    """Batches that the DALI graph keeps ready ahead of the training step."""
    hw_decoder_load: float = 0.9
    """Share of the JPEG files that a GPU's decoding engines take, where it has them; its cores decode the others."""
    max_bad_share: float = 0.01
    """Share of the images that may be damaged or unreadable before a run, or a score, ends; up to three always may,
    unless it is 0. Those that are met are left out, and others stand in for them."""
    label_fraction: float = 1.0
    """Share of the labelled training images that fine-tuning takes, whole groups of each class."""
    folds: int = 0
    """Parts that the labelled images outside the test split are cut into by group, one of which validates; 0 validates
    on the archive's own split."""
    fold: int = 0
    """Which of `folds` validates, from 0."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel that normalisation subtracts, on a scale where white is 1. With model.in_channels=1 a single
    number; the average of three is taken for it."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel that normalisation divides by, on a scale where white is 1; as data.mean."""

    def _check(self) -> None:
        require(bool(self.path), "data.path", self.path, "the folder of a prepared archive")
        preset = find_preset(self.views)
        if self.views.startswith("{"):  # in one way, so that a run whose preset is only written in another goes on
            object.__setattr__(self, "views", text_of(preset))
        self._require_positive("image_size", "window", "prefetch", "cache_gib")
        require(0 <= self.threads <= _MOST_THREADS, "data.threads", self.threads, f"from 0 to {_MOST_THREADS}")
        require(self.prefetch <= _MOST_PREFETCH, "data.prefetch", self.prefetch, f"at most {_MOST_PREFETCH}")
        require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "in [0, 1]")
        require(0 < self.label_fraction <= 1, "data.label_fraction", self.label_fraction, "in (0, 1]")
        require(self.folds == 0 or self.folds >= 2, "data.folds", self.folds, "2 or more, or 0")
        require(0 <= self.fold < max(1, self.folds), "data.fold", self.fold, "0 or more and below data.folds")
        require(0 <= self.hw_decoder_load <= 1, "data.hw_decoder_load", self.hw_decoder_load, "in [0, 1]")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            require(len(numbers) in (1, 3), f"data.{name}", numbers, "three numbers, one a channel, or one of gray")
        require(min(self.std) > 0, "data.std", self.std, "greater than 0 in every channel")
