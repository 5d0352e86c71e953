"""Every parser of what strangers wrote, over mutations of whole files: each ends, and only as it says that it may.

`make fuzz` looks for more, guided by what it reaches.
"""

from __future__ import annotations

import json
import random

import pytest

from fastfgssl.archive.building.worker import Death, Watch
from fastfgssl.archive.building.workers import run_tasks
from helpers import hostile_seeds, mutations
from helpers.hostile import TARGETS, manifests

MUTATIONS = 100
MANY = 2_000


def check(name: str, numbers: range) -> int:
    """How many of some mutations are accepted."""
    target, accepted = TARGETS[name], 0
    seeds = target.seeds()
    for number in numbers:
        dice = random.Random(number)
        data = mutations.mutated(dice.choice(seeds), dice)
        if dice.random() < 0.5:
            data = mutations.with_checksums(name, data)
        try:
            accepted += target.check(data)
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}") from error
    return accepted


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name):
    assert any(TARGETS[name].check(seed) for seed in TARGETS[name].seeds())
    assert check(name, range(MUTATIONS)) < MUTATIONS  # some of them are noticed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "slide"])
def test_many_mutations(name):
    check(name, range(MUTATIONS, MANY))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_mutations_of_slides():
    """OpenSlide ends the process at some, which costs that one."""
    deaths: list[int] = []

    def after(death: Death) -> range:
        assert not death.timed_out, death
        deaths.append(death.item)
        return range(death.item + 1, death.task.stop)

    tasks = (range(begin, min(MANY, begin + MUTATIONS)) for begin in range(MUTATIONS, MANY, MUTATIONS))
    done = sum(run_tasks(CheckSlides(), tasks, 2, max_seconds=30, after_death=after))
    assert done + len(deaths) <= MANY
    assert len(deaths) < MANY // 100


class CheckSlides:
    """What a worker does."""

    def __call__(self, numbers: range, watch: Watch) -> int:
        for number in numbers:
            watch.begin(number)
            check("slide", range(number, number + 1))
        watch.rest()
        return len(numbers)


def test_a_manifest_of_other_types_is_refused_or_opened():
    """Whatever stands in place of a value, or if it is missing."""
    whole = json.loads(hostile_seeds.manifests()[0])
    places = [(whole, key) for key in whole]
    places += [(part, key) for part in (whole["table"], whole["shards"][0], whole["bit_depth"]) for key in part]
    refused = 0
    for part, key in places:
        right = part.pop(key)
        refused += not manifests(json.dumps(whole).encode())
        for wrong in (None, True, -1, 1.5, 1 << 70, "", "a\0b", [], [None], [{}], {}, {"": None}):
            part[key] = wrong
            refused += not manifests(json.dumps(whole).encode())
        part[key] = right
    assert manifests(json.dumps(whole).encode())
    assert refused > 6 * len(places)
