"""Networks of checkpoints: to score, to use elsewhere as a backbone, or like them with random weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastfgssl.config.files import config_of_run
from fastfgssl.config.schema import Config
from fastfgssl.evaluation.transform import PlainTransform
from fastfgssl.models import Network
from fastfgssl.models.backbone import Backbone
from fastfgssl.models.classifier import SUM, ClassifyingNetwork, logits_of
from fastfgssl.models.weights import averaged_weights
from fastfgssl.objectives import build_objective, require_trusted
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import user_path
from fastfgssl.training.checkpoint import load_checkpoint, load_newest_checkpoint
from fastfgssl.training.saving import find_newest

log = logging.getLogger(__name__)


class Pretrained(NamedTuple):
    model: Network
    config: Config
    step: int  # training steps that the weights have seen
    archive: str  # fingerprint of the archive that they have seen


class PretrainedBackbone(nn.Module):
    """A trained backbone without blocks and heads, and the transform that its images need.

    `backbone(images)` takes float32 [B, C, S, S] as the transform makes it (any other S that the network takes works
    too) and gives features float32 [B, C]: the global average of the last map, what `fastfgssl evaluate` calls
    `backbone`. `backbone.maps(images)` gives the last three maps, fine to coarse. C is `backbone.num_features`.
    """

    transform: PlainTransform
    """PIL image, or uint8 or uint16 tensor, to what the network takes; see `PlainTransform`."""
    config: Config
    """The configuration of its training."""
    step: int
    """Training steps that the weights have seen."""

    def __init__(self, backbone: Backbone, config: Config, step: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = backbone.tap_channels[-1]
        self.transform = PlainTransform(config.data.image_size, config.data.mean, config.data.std)
        self.config, self.step = config, step

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps [B, C, S / stride, S / stride] of the three depths that pretraining looked at, fine to coarse."""
        return self.backbone(images)


class PretrainedClassifier(nn.Module):
    """A fine-tuned network, the classes that it tells apart, and the transform that its images need.

    `classifier(images)` takes float32 [B, C, S, S] as the transform makes it and gives logits float32 [B, K] in the
    order of `classes`: the sum of those of its heads. `backbone` is the backbone alone, as pretraining's is loaded.
    """

    classes: tuple[str, ...]
    """Names of the K classes, in the order of the logits."""
    transform: PlainTransform
    """PIL image, or uint8 or uint16 tensor, to what the network takes; see `PlainTransform`."""
    config: Config
    """The configuration of its training."""
    step: int
    """Training steps that the weights have seen."""

    def __init__(self, network: ClassifyingNetwork, config: Config, step: int) -> None:
        super().__init__()
        self.network, self.classes = network, network.classes
        self.config, self.step = config, step
        self.transform = self.backbone.transform

    @property
    def backbone(self) -> PretrainedBackbone:
        return PretrainedBackbone(self.network.backbone, self.config, self.step).train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.predict(images)

    def probabilities(self, images: Tensor, *, flips: bool | None = None) -> Tensor:
        """Of each class, float32 [B, K], a row summing to 1: the softmax of the logits.

        flips: of their mean over an image and its three mirror images; None does as `supervised.flips` says.
        """
        averaged = self.config.supervised.flips if flips is None else flips
        return logits_of(self.network, images, flips=averaged)[SUM].softmax(dim=1)


def load(checkpoint: str | Path) -> PretrainedBackbone | PretrainedClassifier:
    """The backbone of a pretraining's checkpoint, or the classifier of a fine-tuning's, with its `transform`.

    It is on the CPU, in evaluation mode. checkpoint: a file that training wrote, or a run's output folder, whose newest
    whole checkpoint is taken. No code that the file may hold is run, and no weights are downloaded. Raises `UserError`
    if it is not a checkpoint, or was made by an objective of a module that is not imported yet.

        backbone = fastfgssl.load("runs/first/checkpoints/step_000001000.pt")
        features = backbone(backbone.transform(Image.open("lesion.jpg"))[None])  # [1, C]
        classifier = fastfgssl.load("runs/tuned/checkpoints/best.pt")
        logits = classifier(classifier.transform(Image.open("lesion.jpg"))[None])  # [1, K], of classifier.classes
    """
    loaded = load_pretrained(checkpoint)
    if isinstance(loaded.model, ClassifyingNetwork):
        return PretrainedClassifier(loaded.model, loaded.config, loaded.step).eval()
    return PretrainedBackbone(loaded.model.backbone, loaded.config, loaded.step).eval()


def load_pretrained(checkpoint: str | Path) -> Pretrained:
    """The network of a checkpoint, with the configuration that it was trained with; `checkpoint` as for `load`."""
    path = user_path(checkpoint)
    state = _newest_of(path) if path.is_dir() else load_checkpoint(path)
    try:
        config = config_of_run(state["config"])
        require_trusted(config.objective)
        model = build_untrained(config, config.seed)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    try:
        model.load_state_dict(averaged_weights(state) or state["model"])
    except (RuntimeError, TypeError, AttributeError):  # torch lists every tensor
        raise UserError(
            f"{checkpoint}: its weights are not those of the network that its configuration names"
        ) from None
    return Pretrained(model, config, state["step"], state["archive"])


def _newest_of(folder: Path) -> dict:
    state = load_newest_checkpoint(folder / "checkpoints").state or load_newest_checkpoint(folder).state
    if state is None:
        raise UserError(f"{folder}: no checkpoint in it; name a checkpoint, or the output folder of a run")
    try:
        config = config_of_run(state["config"])
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if not config.output_fallback:
        return state
    newest = find_newest(replace(config, output=str(folder))).state or state
    if newest["step"] > state["step"]:
        log.warning("%s has step %d; step %d, in output_fallback, is taken", folder, state["step"], newest["step"])
        return newest
    return state


def build_untrained(config: Config, seed: int) -> Network:
    """The network of `config` with random weights of its own seed: what a trained one is compared with.

    Leaves torch's global generators as they are. Raises `UserError` for an objective whose network has no features.
    """
    # its batch norms are local and its weights contiguous, as one process on a CPU runs them
    train = replace(config.train, compile=False, batch_norm="local", channels_last=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of GPUs too
        objective = build_objective(replace(config, train=train), World.alone(torch.device("cpu")), fresh=False)
    if not isinstance(objective.model, Network):
        raise UserError(f"objective = {config.objective!r}: its network has no features: it is no models.Network")
    return objective.model
