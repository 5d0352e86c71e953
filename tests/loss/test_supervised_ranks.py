"""Losses that learn from labels: over several ranks those of one process on all rows; the host never waits."""

from __future__ import annotations

from dataclasses import replace

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
CUTS = {1: [0, 11], 2: [0, 7, 11], 3: [0, 5, 8, 11]}
"""Rows of each rank, by the number of ranks: not equally many."""
MIXED = 0.25 * soft_targets(TARGETS, K) + 0.75 * soft_targets(TARGETS.roll(1), K)


class Losses(torch.nn.Module):
    """Every loss of features of one layer, each from its own part of them."""

    def __init__(self, group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, F).double()
        # of one loss alone, DDP would miss gradients of the others' heads
        self.heads = torch.nn.Linear(F, 2 * K + 4).double().requires_grad_(False)
        self.centres = ClassCentres(K, F, group=group)
        self.register_buffer("weights", class_weights(COUNTS))
        self.register_buffer("priors", log_priors(COUNTS))
        self.group = group

    def forward(self, x, targets, mixed):
        group, features = self.group, self.layer(x).tanh()
        logits, of_turns = self.heads(features).split((2 * K, 4), dim=1)
        centred = self.centres(features, mixed, temperature=0.7)
        twice = torch.cat((logits, -2 * logits))
        turned = torch.cat([turns * of_turns for turns in range(4)])
        permutations = (torch.arange(K, device=x.device) + targets[:, None]) % K
        return torch.stack(
            (
                cross_entropy(logits[:, :K], targets, group=group),
                cross_entropy(
                    logits[:, :K],
                    targets,
                    class_weights=self.weights,
                    log_priors=self.priors,
                    label_smoothing=0.1,
                    group=group,
                ),
                cross_entropy(logits[:, :K], mixed, class_weights=self.weights, group=group),
                centred.centre,
                centred.graph,
                adversarial_loss(twice, targets, group=group),
                alignment_loss(torch.cat((logits[:, :K], logits[:, K:])).tanh(), permutations, group=group),
                rotation_loss(centred.graph, turned, group=group),
            )
        )


def test_the_host_waits_for_nothing():
    """There is nothing on the meta device that could be waited for: to ask for a number is an error."""
    losses = Losses(None).to("meta")
    x, targets, mixed = torch.randn(11, 4, dtype=torch.float64), TARGETS, MIXED
    losses(x.to("meta"), targets.to("meta"), mixed.to("meta")).sum().backward()
    losses.centres.accumulate(torch.zeros(11, F, device="meta"), targets.to("meta"))
    losses.centres.finish_epoch()


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


def on_rank(world, x):
    """What groups of one, two and three ranks find, by their number; the group of one has every row."""
    found = {}
    for size, cuts in CUTS.items():
        group = dist.new_group(list(range(size)))  # by all ranks, also those that are not in it
        if world.rank < size:
            rows = slice(cuts[world.rank], cuts[world.rank + 1])
            losses = Losses(group)
            run = data_parallel(losses, replace(world, size=size, group=group))
            found[size] = values_and_gradients(losses, run, x[rows], TARGETS[rows], MIXED[rows])
    return found


def test_ranks_train_as_one_process_with_all_rows():
    x = torch.randn(len(TARGETS), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = Losses(None)
    expected = values_and_gradients(losses, losses, x, TARGETS, MIXED)
    for of_sizes in run_on_ranks(on_rank, 3, x):
        for found in of_sizes.values():
            for got, want in zip(found, expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
