"""Damage of every kind and extent: found before a decoder sees it, listed, and stood in for; nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from helpers.damage import SHARES, STARTS, STEPS, WAYS, cut_shards, damage_sample, damaged_copy
from helpers.loader import loader
from helpers.paths import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def starts(archive_path, tmp_path_factory) -> dict[str, list[dict]]:
    """What `helpers.damage` prints, by case. A process of its own: what this guards against was a crash."""
    command = [sys.executable, "-m", "helpers.damage", str(archive_path), str(tmp_path_factory.mktemp("damage"))]
    path = f"{ROOT}:{ROOT / 'tests'}"
    process = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    found = defaultdict(list)
    for line in process.stdout.splitlines():
        case = json.loads(line)
        found[case["case"]].append(case)
    assert process.returncode == 0, (
        f"ended with {process.returncode} after {list(found)[-1:]}: {process.stderr[-2000:]}"
    )
    assert "jpeg" not in process.stderr.lower()  # libjpeg has complaints about what it decodes all the same
    return found


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("way", WAYS)
def test_damage_is_listed_and_the_rest_is_the_stream_of_a_run_without(starts, way, share):
    cases = starts[f"{way} {share}"]
    assert len(cases) == STARTS
    for case in cases:
        assert case["batches"] == STEPS
        assert case["listed"] == case["met"]
        assert case["intact_rows_are_untouched"]
        assert case["is_that_of_a_list_beforehand"]
    assert any(case["met"] for case in cases)


def test_damage_in_the_first_place_of_a_large_batch(starts):
    assert [(case["batches"], case["first"]) for case in starts["batch of 200"]] == [(2, 1)] * STARTS


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_find_the_same_substitutes_each_for_itself(archive_path, tmp_path, world_size):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", "flipped", 0.5)
    whole = np.concatenate([batch.ids for batch in loader(archive)])
    assert not damaged & set(whole.tolist())
    for alone in range(world_size):  # no rank knows what another found
        found = [batch.ids for batch in loader(archive, rank=alone, world_size=world_size)]
        part = whole.reshape(len(found), world_size, -1)[:, alone]
        np.testing.assert_array_equal(np.stack(found), part)


def test_what_stood_in_is_counted(archive_path, tmp_path):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 0.1)
    with loader(archive, stop=7) as batches:  # an epoch
        assert batches.substitutes == 0
        list(batches)
        assert (batches.substitutes, batches.samples) == (len(damaged), 84)


def test_a_run_says_how_much_it_was_not_shown(make_config, archive_path, tmp_path, caplog):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 0.1)
    config = make_config()
    (tmp_path / "run").mkdir()
    stream = ArchiveStream(config, World.alone(CPU))
    for opened, said in ((stream.archive, 0), (archive, 1)):
        stream.archive = opened
        caplog.clear()
        with stream.batches(0, 7) as batches:
            list(batches)
        told = [message for message in caplog.messages if "stood in for damaged ones" in message]
        assert len(told) == said
    assert told[0].startswith(f"{len(damaged)} of 84 samples (9.5 %) stood in for damaged ones; {config.output}")


def test_a_shard_may_be_cut_while_it_is_read(archive_path, tmp_path):
    archive, _ = damaged_copy(archive_path, tmp_path / "cut", "zeroed", 0.01)
    with loader(archive, stop=14, prefetch=1) as batches:
        next(batches)
        gone = cut_shards(archive, 0.5)
        rest = np.concatenate([batch.ids for batch in batches][6:])
    assert not set(gone.tolist()) & set(rest.tolist())


def test_an_archive_whose_samples_are_all_damaged_ends_with_one_line(archive_path, tmp_path):
    archive, _ = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 1)
    file = tmp_path / "quarantine.csv"
    for quarantine in (Quarantine(84, file), Quarantine(84, file)):  # and again, where the list knows it
        with (
            loader(archive, quarantine=quarantine) as batches,
            pytest.raises(UserError, match=r"none of the archive's 84 images can be decoded; see .*quarantine.csv"),
        ):
            next(batches)
    assert len(file.read_text().splitlines()) == 85


@pytest.mark.parametrize(("way", "share", "batch_size"), [("overwritten", 0.01, 200), ("cut", 0.9, 6)])
def test_evaluation_leaves_damaged_samples_out(make_config, archive_path, tmp_path, way, share, batch_size):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", way, share)
    config = make_config(data__max_bad_share=1.0)
    model = build_untrained(config, 0)
    ids = np.resize([*damaged, *range(archive.num_samples)], 200)  # one in the first place, and whole batches of them
    intact = np.array([sample for sample in ids.tolist() if sample not in damaged])
    extractor = FeatureExtractor(model, config, archive, CPU, batch_size)
    kept, features = extractor.plain(ids)
    np.testing.assert_array_equal(kept, intact)
    unhurt = FeatureExtractor(model, config, Archive.open(archive_path), CPU, batch_size)
    torch.testing.assert_close(features["all"][:], unhurt.plain(intact)[1]["all"][:])
    np.testing.assert_array_equal(extractor.views(intact[:6], seed=0).ids, intact[:6])


def test_evaluation_of_damaged_samples_alone_ends_with_one_line(make_config, archive_path, tmp_path):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 0.1)
    config = make_config(data__max_bad_share=1.0)
    extractor = FeatureExtractor(build_untrained(config, 0), config, archive, CPU, 6)
    with pytest.raises(UserError, match=f"none of the {len(damaged)} images to evaluate decodes"):
        extractor.plain(np.array(sorted(damaged)))


def test_a_sample_that_is_damaged_later_is_found_when_it_comes_again(archive_path, tmp_path):
    archive, _ = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 0.01)
    with loader(archive, stop=20, ids=lambda step: np.arange(12) + 50, prefetch=1) as batches:
        assert 55 in next(batches).ids
        damage_sample(archive, 55)
        *_, last = batches
    assert 55 not in last.ids
