"""What the doctor times: parts of the trainer, smaller images, the disk."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import build_decoder
from fastfgssl.data.graph import build_graph, build_views
from fastfgssl.data.reader import Reader
from fastfgssl.data.stream import rank_slots, whole_archive
from fastfgssl.doctor.advice import judge
from fastfgssl.doctor.diagnosis import Diagnosis, _try_short_side, _try_step_settings, examine_rates, untrained_step
from fastfgssl.doctor.disk import measure_reading, measure_writing
from fastfgssl.doctor.rates import BLOCKS, UNREPEATED, Bench
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.memory import OutOfMemory
from fastfgssl.training.step import TrainingStep


def bench_of(config, world) -> Bench:
    archive = Archive.open(config.data.path)
    return Bench(
        config,
        archive,
        world,
        Needs(grids=config.model.grids),
        rank_slots(whole_archive(config, archive), config, world),
        0.1,
    )


def test_images_are_made_smaller_and_timed(make_config):  # of 48 x 40 pixels
    with start_world("cpu") as world:
        bench = bench_of(make_config(data__image_size=16, model__grids=[4, 2, 1]), world)
        short = _try_short_side(bench)
        assert (short.pixels, short.now) == (19, 40)
        assert short.bytes_ratio < 0.9
        assert min(short.before.value, short.after.value) > 0
        assert _try_short_side(bench_of(make_config(), world)) is None  # 37 of 40: not worth it


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("preset", ["paper", "barlow"])  # images as a whole, and regions of them
def test_the_views_that_are_timed_alone_are_those_of_the_graph(make_config, preset, device):
    with start_world(device) as world:
        bench = bench_of(make_config(data__views=preset, train__device=device), world)
    spec, encoded = dataclasses.replace(bench.spec, batch_size=bench.rows), bench.encoded[0]
    params = bench._params(bench._kept(0, bench.rows), Reader(bench.archive).picture_sizes(bench.ids[0]), spec.preset)
    decoder = build_decoder(lambda: encoded, spec)
    alone = build_views(decoder.run()[0], params, spec)
    for _ in range(3):  # the images are still there in the next run
        views = alone.run()
    for ours, truth in zip(views, build_graph(lambda _: (encoded, params), spec).run(), strict=True):
        np.testing.assert_array_equal(ours.as_cpu().as_array(), truth.as_cpu().as_array())


def test_an_image_that_does_not_decode_does_not_end_the_examination(make_config, archive_path, tmp_path):
    shutil.copytree(archive_path, tmp_path / "damaged")
    archive = Archive.open(tmp_path / "damaged")
    config = make_config(data__path=str(tmp_path / "damaged"))
    with start_world("cpu") as world:
        sample = bench_of(config, world).ids[0][:1]
        row = archive.columns(sample, ("shard", "offset", "size"))
        with archive.shard_path(int(row["shard"][0])).open("r+b") as shard:
            shard.seek(int(row["offset"][0]))
            shard.write(bytes(int(row["size"][0])))
        bench = bench_of(config, world)
        assert int(sample[0]) not in np.concatenate(bench.ids)
        assert bench.decode_block() > 0


def test_a_step_is_made_smaller_where_it_takes_too_long(make_config):
    config = make_config(train__accumulate=2, train__heads=[0])
    with start_world("cpu") as world:
        bench = bench_of(config, world)
        step = untrained_step(config, world)
        bench.seconds = 1e-6
        rate, rows = bench.time_step(step)
        assert (rows, rate.noise) == (4, UNREPEATED)  # two images of each micro-batch, once
        bench.seconds = 100
        rate, rows = bench.time_step(step)
        assert (rows, len(rate.blocks)) == (12, BLOCKS)
        assert len(bench.resident(30).anchor) == 30


def test_a_batch_that_does_not_fit_ends_the_examination_and_one_that_is_tried_does_not(make_config, monkeypatch):
    most = [0]  # images of a step that fit
    step = TrainingStep.__call__

    def limited(self, batch, **options):
        if len(batch.anchor) > most[0]:
            torch.empty(2**60, dtype=torch.uint8)
        return step(self, batch, **options)

    monkeypatch.setattr(TrainingStep, "__call__", limited)
    config = make_config(train__heads=[0])
    archive, rows = Archive.open(config.data.path), config.train.batch_size
    with start_world("cpu") as world:
        with pytest.raises(OutOfMemory, match=r"^out of memory while timing the training step: lower train"):
            examine_rates(config, archive, world, 0.1, print)
        most[0] = rows
        found = examine_rates(config, archive, world, 0.1, print)._replace(step_rows=rows)
        diagnosis = Diagnosis(found, judge(found.measured))
        _try_step_settings(diagnosis, print, is_timed=True)
    assert diagnosis.notes == ["trying twice the batch, 24 images a rank: there is not enough memory"]
    assert diagnosis.optional == []


def test_every_sample_is_read_once_and_all_of_it(archive_path):
    archive = Archive.open(archive_path)
    ids = np.arange(archive.num_samples)
    found = measure_reading(archive, iter([ids[:50], ids[20:], ids]), seconds=60)
    assert found.samples == archive.num_samples
    assert found.bytes == sum(map(len, Reader(archive).read(ids)))
    assert found.cached is None or 0 <= found.cached <= 1
    assert measure_reading(archive, iter([ids]), seconds=0).samples == 2


def test_writing_leaves_nothing_behind(tmp_path):
    assert measure_writing(tmp_path / "new" / "run", 0.01) > 0
    assert list(tmp_path.iterdir()) == []
