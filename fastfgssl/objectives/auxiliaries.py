"""What supervised learning may be helped by: further tasks on whole images, each with a weight of its own.

They look at what the network makes of whole images (`Whole`), and at images that they change themselves. Their weights
and state are part of the network, so that they are trained, saved and resumed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch, on_device
from fastfgssl.kernels.jigsaw import jigsaw
from fastfgssl.loss.class_centres import ClassCentres
from fastfgssl.loss.destruction import DestructionHeads, adversarial_loss, alignment_loss, confusion_permutations
from fastfgssl.loss.rotation import TURNS, four_rotations, rotation_loss
from fastfgssl.models.classifier import ClassifyingNetwork, Whole
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError

ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of logits [B, K] by targets, as the configuration has it."""


class Auxiliary(nn.Module):
    """A task beside telling classes apart. B images, K classes."""

    draws: int = 0
    """Random numbers that it takes of each image."""
    num_embeddings: int = 0
    """How many tensors `embed` gives."""

    def embed(self, network: ClassifyingNetwork, images: Tensor, whole: Whole, draws: Tensor) -> tuple[Tensor, ...]:
        """What its loss is a function of, beside features and logits; draws: float32 [B, draws], on the device."""
        return ()

    def add_to(
        self,
        loss: Tensor,
        whole: Whole,
        embeddings: tuple[Tensor, ...],
        targets: Tensor,
        draws: Tensor,
        class_loss: ClassLoss,
    ) -> Tensor:
        """`loss`, that of the classes of whole images, with its own part; class_loss: what `loss` is of logits."""
        raise NotImplementedError

    def after_epoch(self) -> None:
        """Called when all training images have been shown once more."""


class Centres(Auxiliary):
    """Class centres and their graph (DTRG, arXiv 2208.01997); see loss/class_centres.py."""

    def __init__(self, network: ClassifyingNetwork, config: Config, world: World) -> None:
        super().__init__()
        supervised = config.supervised
        self._weights = supervised.centre_weight, supervised.graph_weight
        self._temperature = supervised.graph_temperature
        self.centres = ClassCentres(len(network.classes), network.num_features, group=world.group)

    def add_to(self, loss, whole, embeddings, targets, draws, class_loss):
        terms = self.centres(whole.features, targets, temperature=self._temperature)
        self.centres.accumulate(whole.features.detach(), targets)
        return loss + self._weights[0] * terms.centre + self._weights[1] * terms.graph

    def after_epoch(self) -> None:
        self.centres.finish_epoch()


class Destruction(Auxiliary):
    """Destruction and construction (DCL, arXiv 2105.08788); see loss/destruction.py."""

    num_embeddings = 3

    def __init__(self, network: ClassifyingNetwork, config: Config, world: World) -> None:
        super().__init__()
        self._grid, self._group = config.supervised.destruction_grid, world.group
        self._weight = config.supervised.destruction_weight
        self.draws = 2 * self._grid**2
        side, stride = config.data.image_size, network.backbone.tap_strides[-1]
        if side % self._grid or -(-side // stride) % self._grid:
            raise UserError(
                f"supervised.destruction_grid = {self._grid}: must divide data.image_size = {side} and the"
                f" {-(-side // stride)} x {-(-side // stride)} of the backbone's last map"
            )
        self.heads = DestructionHeads(network.backbone.tap_channels[-1], len(network.classes), self._grid)

    def embed(self, network, images, whole, draws):
        moved = network.whole(jigsaw(images, confusion_permutations(draws, self._grid), self._grid))
        destroyed = self.heads(torch.cat((whole.last_map, moved.last_map)))
        return moved.logits, *destroyed

    def add_to(self, loss, whole, embeddings, targets, draws, class_loss):
        moved_logits, of_both, places = embeddings
        moved = class_loss(moved_logits, targets)
        adversary = adversarial_loss(of_both, targets, group=self._group)
        aligned = alignment_loss(places, confusion_permutations(draws, self._grid), group=self._group)
        return loss + self._weight * (moved + adversary + aligned)


class Rotation(Auxiliary):
    """Telling by how many quarters an image was turned (arXiv 2105.08788); see loss/rotation.py."""

    num_embeddings = 2

    def __init__(self, network: ClassifyingNetwork, config: Config, world: World) -> None:
        super().__init__()
        self._weight, self._group = config.supervised.rotation_weight, world.group
        self.classifier = nn.Linear(network.num_features, TURNS)

    def embed(self, network, images, whole, draws):
        turned = network.whole(four_rotations(images)[len(images) :])
        return turned.logits, self.classifier(torch.cat((whole.features, turned.features)))

    def add_to(self, loss, whole, embeddings, targets, draws, class_loss):
        turned_logits, turns = embeddings
        turned = class_loss(turned_logits, torch.cat([targets] * (TURNS - 1)))
        return rotation_loss((loss + (TURNS - 1) * turned) / TURNS, turns, weight=self._weight, group=self._group)


def build_auxiliaries(network: ClassifyingNetwork, config: Config, world: World) -> list[Auxiliary]:
    """Those that `config` gives a weight."""
    supervised = config.supervised
    made: list[Auxiliary] = []
    if supervised.rotation_weight:  # first: it is of the classes' loss alone
        made.append(Rotation(network, config, world))
    if supervised.destruction_weight:
        made.append(Destruction(network, config, world))
    if supervised.centre_weight or supervised.graph_weight:
        made.append(Centres(network, config, world))
    return made


def auxiliaries_of(network: nn.Module) -> list[Auxiliary]:
    """Those of a network that was built with some."""
    found: Any = network.auxiliaries
    return list(found)


def split_draws(auxiliaries: list[Auxiliary], batch: Batch, device: torch.device) -> list[Tensor]:
    """Each one's random numbers, on the device: the last columns of the batch's."""
    if batch.draws is None:
        return [torch.empty(0, device=device)] * len(auxiliaries)
    sizes = [auxiliary.draws for auxiliary in auxiliaries]
    draws: Any = on_device(batch.draws, device)
    return list(draws[:, draws.shape[1] - sum(sizes) :].split(sizes, dim=1))
