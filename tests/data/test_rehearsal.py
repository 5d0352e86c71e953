"""A late giant: its memory is found, said and taken before the first step."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.data import rehearsal
from fastfgssl.data.order import Order
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from helpers.loader import spec

SIDE, COUNT, STEPS = 2400, 24, 4


@pytest.fixture(scope="module")
def giant(tmp_path_factory):
    """An archive of small images and a giant, which comes with the last step of an epoch; its number."""
    folder = tmp_path_factory.mktemp("giant")
    order = Order(np.array([COUNT]), seed=0, window=1).slots(0, COUNT).ids
    late = int(order[-1])
    source = folder / "source"
    source.mkdir()
    for number in range(COUNT):
        side = SIDE if number == late else 40
        pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(source / f"{number:02}.jpg")
    prepare(PrepareOptions(sources=[source], out=folder / "archive", workers=1))
    archive = Archive.open(folder / "archive")
    sizes = archive.columns(np.arange(COUNT), ("width",))["width"]
    return archive, int(sizes.argmax())


def slots_of(archive: Archive):
    order, part = Order(archive.shard_sizes, seed=0, window=1), COUNT // STEPS
    return lambda step: order.slots(step * part, (step + 1) * part)


def test_the_heaviest_batch_is_found_wherever_it_is(giant):
    archive, largest = giant
    slots = slots_of(archive)
    found = rehearsal.find_heaviest(archive, spec(), slots, STEPS)
    assert largest in found.ids
    assert found.largest == (SIDE, SIDE)
    assert found.nbytes == 3 * (SIDE**2 + 5 * 40**2)
    short = rehearsal.find_heaviest(archive, spec(), slots, 1)  # a run that may not meet it before it ends, or may
    assert (largest in short.ids, short.nbytes) == (True, found.nbytes)
    assert rehearsal.find_heaviest(archive, spec(depth="own"), slots, STEPS).nbytes == 7 * found.nbytes


def test_it_is_decoded_before_the_first_step(giant, make_config, monkeypatch, caplog):
    archive, largest = giant
    decoded = []
    build = rehearsal.build_decoder

    def watched(source, spec):
        decoded.extend(len(image) for image in source().images)
        return build(source, spec)

    monkeypatch.setattr(rehearsal, "build_decoder", watched)
    config = make_config(data__path=str(archive.path), train__batch_size=6)
    stream = ArchiveStream(config, World.alone(torch.device("cpu")))
    with stream.batches(0, STEPS):
        assert decoded == []  # small images are not worth it
    monkeypatch.setattr(rehearsal, "_WORTH", 1 << 20)
    monkeypatch.setattr(rehearsal, "available_memory", lambda: 1 << 20)
    with caplog.at_level(logging.INFO, "fastfgssl"), stream.batches(0, STEPS):
        assert len(decoded) == 6
    assert max(decoded) == archive.columns(np.array([largest]), ("size",))["size"][0]
    assert f"decoding the heaviest batch (6 images, 0.02 GiB of pixels, the largest of {SIDE} x {SIDE})" in caplog.text
    assert "may not fit in the 0.0 GiB of memory that are available: lower train.batch_size" in caplog.text


def test_memory_that_does_not_suffice_ends_the_run_then(giant, make_config, monkeypatch):
    archive, _ = giant
    monkeypatch.setattr(rehearsal, "_WORTH", 1 << 20)

    class Full:
        def build(self) -> None:
            pass

        def run(self) -> None:
            raise RuntimeError("nvml error: CUDA allocation failed: out of memory")

    monkeypatch.setattr(rehearsal, "build_decoder", lambda source, spec: Full())
    config = make_config(data__path=str(archive.path), train__batch_size=6)
    with pytest.raises(UserError, match=rf"^out of memory while decoding the heaviest batch \(6 images, .*{SIDE} x"):
        pretrain(config)
