"""What a run is: frozen dataclasses, one docstring a key, each checked as it is made.

`files.py` reads and writes them; nothing changes them afterwards. Checks that need the machine (world size,
known view presets, known backbones) are made by the part that knows, before any work starts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from fastfgssl.config.baseline import BaselineConfig as BaselineConfig
from fastfgssl.config.data import IMAGENET_MEAN as IMAGENET_MEAN
from fastfgssl.config.data import IMAGENET_STD as IMAGENET_STD
from fastfgssl.config.data import DataConfig as DataConfig
from fastfgssl.config.data import ViewSizes as ViewSizes
from fastfgssl.config.evaluate import EvaluateConfig as EvaluateConfig
from fastfgssl.config.loss import LossConfig as LossConfig
from fastfgssl.config.optim import OptimConfig as OptimConfig
from fastfgssl.config.section import Section, require
from fastfgssl.config.supervised import SupervisedConfig as SupervisedConfig
from fastfgssl.runtime.errors import UserError

Stage = Literal[0, 1, 2, "all"]
STAGES: tuple[Stage, ...] = (0, 1, 2, "all")
Schedule = Literal["progressive", "joint"]
PrecisionName = Literal["float32", "tf32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cuda", "cpu"]
GradientDtype = Literal["float32", "bfloat16"]

_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    section = "model"
    paths = frozenset({"weights"})

    backbone: str = "resnet50"
    """A torchvision ResNet (resnet18 to resnet152, wide_resnet50_2, resnext50_32x4d, ...), or timm/NAME, such as
    timm/convnext_tiny, for a network of timm (extra `timm`)."""
    weights: str = "imagenet"
    """Start of the backbone: imagenet (torchvision's or timm's own weights), none, or a file with a state dict."""
    width: float = 1.0
    """Multiplies a ResNet's channels; below 1 for small machines, and then `weights` cannot be imagenet."""
    in_channels: Literal[3, 1] = 3
    """Channels of the images. 1: gray, for networks of one input channel; weights of 3 are summed over them, and colour
    images are taken by their luminance (docs/views.md)."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7 x 7 stride 2 and max pooling; small: 3 x 3 stride 1 and no pooling, for images up to 64 pixels."""
    grids: tuple[int, ...] = (16, 8, 4)
    """Tiles a side of the jigsaw for head 0, 1 and 2: fine to coarse."""
    embedding_dim: int = 512
    """Length F of every embedding."""
    block: Literal["full", "light"] = "full"
    """light: hierarchical blocks with a sixth of the operations, their 3 x 3 convolution split by channel."""
    block_dim: int = 1024
    """Channels that a hierarchical block ends with, and so the length of its pooled vector."""

    def _check(self) -> None:
        require(len(self.grids) == 3, "model.grids", self.grids, "three grids, one a tapped stage")
        require(
            all(fine > coarse for fine, coarse in itertools.pairwise(self.grids)),
            "model.grids",
            self.grids,
            "descending, finest first, such as [16, 8, 4]",
        )
        require(min(self.grids) >= 1, "model.grids", self.grids, "at least 1 each")
        require(max(self.grids) <= 64, "model.grids", self.grids, "at most 64 each")
        self._require_positive("width", "embedding_dim", "block_dim")
        require(
            self.weights != "imagenet" or (self.width == 1.0 and self.stem == "imagenet"),
            "model.weights",
            self.weights,
            "none or a file when model.width is not 1 or model.stem is not imagenet",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    section = "train"

    schedule: Schedule = "progressive"
    """progressive: an optimiser update for each head, finest first; joint: one update on the sum of their losses."""
    heads: tuple[Stage, ...] = STAGES
    """Heads that are trained; [2] with a coarsest grid of 1 is Barlow Twins."""
    batch_size: int = 200
    """Global batch: images of a step over all ranks."""
    steps: int | None = None
    """Length of the run in global batches; give this or epochs."""
    epochs: float | None = None
    """Length of the run in passes over the archive; give this or steps."""
    accumulate: int = 1
    """Micro-batches of an update; batch norm sees one at a time, and so does the loss unless loss.cache is true."""
    precision: PrecisionName = "bfloat16"
    """Type of the forward and backward pass: float32, float32 with TF32 products on a GPU, or that of autocast;
    float16 scales the loss. The loss itself is float32."""
    device: DeviceName = "auto"
    """auto takes a GPU where there is one."""
    batch_norm: Literal["local", "sync"] = "local"
    """Batch statistics of each rank, or of the global batch."""
    gradient_dtype: GradientDtype = "float32"
    """Type in which ranks send each other gradients; bfloat16 halves the bytes and keeps 8 of 24 bits of precision."""
    channels_last: bool = True
    """Keep activations as N H W C, the layout that convolutions are fastest in."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the first step, faster after it on a GPU."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; one is always written at the start, at the end and on a signal."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept beside the first."""
    sinks: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where reports go beside metrics.jsonl, [] for nowhere; wandb and mlflow need the extra of their name."""
    nonfinite_limit: int = 5
    """Steps in a row with gradients that are not finite, each skipped, after which the run goes back to its newest
    checkpoint with a tenth of the learning rate, once, and then ends."""
    timeout: float = 600.0
    """Seconds, at most a day, that ranks wait for each other, once the first step is done, before they end with an
    error."""
    write_patience: float = 300.0
    """Seconds that training pauses, and tries again, for a disk that takes no checkpoint or report, before it ends; of
    several ranks at most half of `timeout`."""

    def _check(self) -> None:
        require(0 <= self.write_patience <= _DAY, "train.write_patience", self.write_patience, "in [0, 86400]")
        self._require_positive(
            "batch_size",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "timeout",
            "nonfinite_limit",
        )
        # torch counts it in nanoseconds of 64 bits, and adds it to the time of day
        require(self.timeout <= _DAY, "train.timeout", self.timeout, f"at most {_DAY:.0f} seconds, a day")
        require(bool(self.heads), "train.heads", list(self.heads), "at least one of 0, 1, 2, all")
        require(
            list(self.heads) == [stage for stage in STAGES if stage in self.heads],
            "train.heads",
            list(self.heads),
            "in the order 0, 1, 2, all, each at most once",
        )
        require(len(set(self.sinks)) == len(self.sinks), "train.sinks", list(self.sinks), "a list of each at most once")
        if (self.steps is None) == (self.epochs is None):
            raise UserError("train.steps, train.epochs: give one of the two, as in train.epochs=100")
        length = "steps" if self.epochs is None else "epochs"
        self._require_positive(length)

    def pause(self, world_size: int) -> float:
        """Seconds that a rank may wait for a disk, while the others wait for it."""
        return min(self.write_patience, self.timeout / 2) if world_size > 1 else self.write_patience

    def num_steps(self, num_samples: int) -> int:
        """Steps of the run; an epoch that the batch size does not divide is rounded up to a whole step."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # one of the two is given
        return math.ceil(self.epochs * num_samples / self.batch_size)

    def check_world_size(self, world_size: int) -> None:
        """Raises `UserError` unless every micro-batch splits evenly over the ranks, two images or more each."""
        parts = world_size * self.accumulate
        require(
            self.batch_size >= 2 * parts and self.batch_size % parts == 0,
            "train.batch_size",
            self.batch_size,
            f"a multiple of {parts}, at least {2 * parts}"
            f" ({world_size} ranks x {self.accumulate} micro-batches, two images or more each)",
        )


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    paths = frozenset({"output", "output_fallback"})
    of_64_bits = frozenset({"seed"})

    objective: str = "fgssl"
    """What is learned: `fgssl`; to compare with it `barlow`, `vicreg`, `simclr`, `byol` or `simsiam`; in fine-tuning
    `supervised.progressive`, `supervised.joint` or `supervised.plain`; or a module of yours such as `package.module`
    (docs/contributing.md)."""
    seed: int = 0
    """Everything random follows from it: initial weights, order, view parameters."""
    output: str = "runs/default"
    """Folder for metrics, checkpoints and pictures. Starting again with the same folder resumes."""
    output_fallback: str = ""
    """Folder, best on another disk, for checkpoints that `output` cannot take, as of a full disk; the same command goes
    on from there."""
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def schedule(self) -> Schedule:
        """What the objective's name says, as in `supervised.joint`, or else `train.schedule`."""
        named = self.objective.rpartition(".")[2]
        return next((schedule for schedule in get_args(Schedule) if schedule == named), self.train.schedule)

    def _check(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")
        require(bool(self.output), "output", self.output, "a folder")
        object.__setattr__(self, "data", _of_channels(self.data, self.model.in_channels))
        # apex counts the steps of a group; an update of `progressive` is a step of some of its parameters
        family, _, variant = self.objective.partition(".")
        has_heads = family in ("fgssl", "supervised") and variant != "plain"
        is_one_update = not has_heads or self.schedule == "joint" or len(self.train.heads) == 1
        require(
            not self.optim.ema_decay or (variant != "" and family != "fgssl"),
            "optim.ema_decay",
            self.optim.ema_decay,
            f"0 with objective={self.objective}: averages are of supervised objectives",
        )
        require(
            self.optim.backend == "torch" or is_one_update,
            "optim.backend",
            self.optim.backend,
            "torch with train.schedule=progressive; apex follows train.schedule=joint",
        )
        for grid in self.model.grids:
            require(
                self.data.image_size % grid == 0,
                "data.image_size",
                self.data.image_size,
                f"divisible by every grid of model.grids {list(self.model.grids)}; {grid} does not divide it",
            )


def _of_channels(data: DataConfig, channels: int) -> DataConfig:
    """`data` with a mean and a deviation for each channel of the images."""
    if channels == 1:
        mean, std = (math.fsum(values) / len(values) for values in (data.mean, data.std))
        return replace(data, mean=(mean,), std=(std,))
    for name in ("mean", "std"):
        must = "three numbers, one a channel, unless model.in_channels is 1"
        require(len(getattr(data, name)) == 3, f"data.{name}", getattr(data, name), must)
    return data
