"""Losses that learn from labels, over several ranks: value and gradients of one process on all rows."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from fastfgssl.loss.class_centres import ClassCentres
from fastfgssl.loss.classification import class_weights, cross_entropy, log_priors, soft_targets
from fastfgssl.loss.destruction import adversarial_loss, alignment_loss
from fastfgssl.loss.rotation import rotation_loss
from fastfgssl.runtime.distributed import data_parallel
from helpers.ranks import run_on_ranks

K, F = 5, 6
COUNTS = [50, 30, 15, 4, 1]
TARGETS = torch.tensor([0, 1, -1, 4, 2, -1, -1, -1, 3, 0, 0])
"""The second of three ranks has none with a class."""
CUTS = {2: [0, 7, 11], 3: [0, 5, 8, 11]}
"""Ranks have different numbers of rows."""
MIXED = 0.25 * soft_targets(TARGETS, K) + 0.75 * soft_targets(TARGETS.roll(1), K)


class Losses(torch.nn.Module):
    """Every loss of features of one layer, each from its own part of them."""

    def __init__(self, group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, F).double()
        self.heads = torch.nn.Linear(F, 2 * K + 4).double()
        self.centres = ClassCentres(K, F, group=group)
        self.group = group

    def forward(self, x, targets, mixed):
        group, features = self.group, self.layer(x).tanh()
        logits, of_turns = self.heads(features).split((2 * K, 4), dim=1)
        centred = self.centres(features, mixed, temperature=0.7)
        twice = torch.cat((logits, -2 * logits))
        turned = torch.cat([turns * of_turns for turns in range(4)])
        permutations = torch.stack([torch.arange(K).roll(int(row)) for row in targets])
        return torch.stack(
            (
                cross_entropy(logits[:, :K], targets, group=group),
                cross_entropy(
                    logits[:, :K],
                    targets,
                    class_weights=class_weights(COUNTS),
                    log_priors=log_priors(COUNTS),
                    label_smoothing=0.1,
                    group=group,
                ),
                cross_entropy(logits[:, :K], mixed, class_weights=class_weights(COUNTS), group=group),
                centred.centre,
                centred.graph,
                adversarial_loss(twice, targets, group=group),
                alignment_loss(torch.cat((logits[:, :K], logits[:, K:])).tanh(), permutations, group=group),
                rotation_loss(centred.graph, turned, group=group),
            )
        )


def values_and_gradients(losses: Losses, run, x, targets, mixed) -> list:
    """After an epoch with the first half of a second one, from whose state a run could go on."""
    losses.centres.accumulate(losses.layer(x), targets)
    losses.centres.finish_epoch()
    losses.centres.accumulate(losses.layer(2 * x), mixed)
    values = run(x, targets, mixed)
    found = [values.detach().clone(), *losses.centres.state_dict().values()]
    for term in range(len(values)):
        losses.zero_grad()
        run(x, targets, mixed)[term].backward()
        found += [parameter.grad.clone() for parameter in losses.layer.parameters()]
    return found


def on_rank(world, x, cuts):
    rows = slice(cuts[world.rank], cuts[world.rank + 1])
    losses = Losses(world.group)
    # heads of losses that are not looked at have no gradient
    losses.heads.requires_grad_(False)
    shared = values_and_gradients(losses, data_parallel(losses, world), x[rows], TARGETS[rows], MIXED[rows])
    groups = [dist.new_group([rank]) for rank in range(world.size)]
    own = Losses(groups[world.rank])
    alone = Losses(None)
    for each in (own, alone):
        each.heads.requires_grad_(False)
    of_group = values_and_gradients(own, own, x[rows], TARGETS[rows], MIXED[rows])
    return shared, of_group, values_and_gradients(alone, alone, x[rows], TARGETS[rows], MIXED[rows])


@pytest.mark.parametrize("world_size", CUTS)
def test_ranks_train_as_one_process_with_all_rows(world_size):
    x = torch.randn(len(TARGETS), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = Losses(None)
    expected = values_and_gradients(losses, losses, x, TARGETS, MIXED)
    for shared, of_group_of_one, alone in run_on_ranks(on_rank, world_size, x, CUTS[world_size]):
        for got, want in zip(shared, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
        for got, want in zip(of_group_of_one, alone, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
