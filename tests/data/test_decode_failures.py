"""Samples that a decoder refuses although their bytes are intact."""

from __future__ import annotations

import dataclasses
import gc
import io
import weakref

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.images.image import TrainingDecoder
from fastfgssl.archive.manifest import Archive
from fastfgssl.data import decode_failures as failures_module
from fastfgssl.data import loader as loader_module
from fastfgssl.data.batch import Batch
from fastfgssl.data.decode_failures import DecodeFailures, decoder_message, encode_pnm
from fastfgssl.data.graph import GraphInput, build_graph
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from helpers.gpu import on_hardware
from helpers.loader import loader, spec, tensors

REFUSED = (7, 30)


class Decoder:
    """In the place of a decoder that refuses some bytes: DALI's own refuses none that `prepare` has let pass."""

    def __init__(self, source, spec, refused: list[bytes]) -> None:
        self._source, self._refused = source, refused

    def build(self) -> None:
        pass

    def run(self) -> None:
        if self._source().images[0].tobytes() in self._refused:
            raise RuntimeError("Error in the decoder, encountered:\n\nits own words\nsomewhere")


@pytest.fixture(scope="module")
def whole(archive_path) -> list[Batch]:
    """An epoch that meets no refusal."""
    with loader(archive_path, stop=7) as batches:
        return list(batches)


@pytest.fixture
def refusing(archive_path, monkeypatch) -> Archive:
    """An archive whose samples `REFUSED` neither the graph nor the decoder alone take, as long as they are as stored.

    What else the graph takes, it decodes.
    """
    archive = Archive.open(archive_path)
    refused = [payload.tobytes() for payload in Reader(archive).read(np.array(REFUSED))]

    def build(source, spec):
        def checked(iteration: int) -> GraphInput:
            given = source(iteration)
            if any(payload.tobytes() in refused for payload in given.encoded.images):
                raise RuntimeError("the graph does not say which")
            return given

        return build_graph(checked, spec)

    monkeypatch.setattr(loader_module, "build_graph", build)
    monkeypatch.setattr(failures_module, "build_decoder", lambda source, spec: Decoder(source, spec, refused))
    return archive


def test_on_a_cpu_it_is_listed_with_the_words_of_the_decoder(whole, refusing, tmp_path):
    assert set(REFUSED) < set(np.concatenate([batch.ids for batch in whole]))
    file = tmp_path / "quarantine.csv"
    found = list(loader(refusing, stop=7, quarantine=Quarantine(84, file)))
    for a, b in zip(whole, found, strict=True):
        np.testing.assert_array_equal(np.where(np.isin(a.ids, REFUSED), a.ids + 1, a.ids), b.ids)
        intact = ~np.isin(a.ids, REFUSED)
        for x, y in zip(tensors(a), tensors(b), strict=True):
            assert x[intact].equal(y[intact])
    lines = file.read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in lines) == ["30", "7"]
    assert all(line.endswith("its own words") for line in lines)


def test_on_a_gpu_the_cpu_decodes_it_once_and_it_is_not_listed(refusing, monkeypatch, caplog):
    monkeypatch.setattr(failures_module, "TrainingDecoder", lambda: TrainingDecoder())
    reader, quarantine = Reader(refusing), Quarantine(84)
    failures, on_gpu = DecodeFailures(reader, quarantine), dataclasses.replace(spec(), device_id=0)
    ids = np.array([6, *REFUSED, 31, 7])
    encoded = reader.read(ids)
    assert failures.settle(ids, on_gpu)
    assert quarantine.samples == set()
    assert len(failures) == len(REFUSED)
    assert sum("is decoded on the CPU" in message for message in caplog.messages) == len(REFUSED)
    for sample, stored, given in zip(ids.tolist(), encoded, failures.replace(ids, encoded), strict=True):
        pictures = [TrainingDecoder().decode(payload.tobytes()) for payload in (stored, given)]
        np.testing.assert_array_equal(*pictures)
        assert (stored is given) == (sample not in REFUSED)
    assert not failures.settle(ids, on_gpu)  # it is not met again


@pytest.mark.gpu
@on_hardware
def test_on_a_gpu_the_stream_keeps_all_its_samples(whole, refusing, tmp_path):
    file = tmp_path / "quarantine.csv"
    with loader(refusing, stop=7, device_id=0, quarantine=Quarantine(84, file)) as batches:
        found = list(batches)
    assert not file.exists()
    for a, b in zip(whole, found, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert (a.anchor - b.anchor.cpu()).abs().mean(dim=(1, 2, 3)).max() < 0.2  # another image differs by about 1


def test_what_the_cpu_refuses_too_is_listed(refusing, monkeypatch):
    monkeypatch.setattr(TrainingDecoder, "decode", lambda self, data, dtype: None)
    reader, quarantine = Reader(refusing), Quarantine(84)
    assert DecodeFailures(reader, quarantine).settle(np.array(REFUSED), dataclasses.replace(spec(), device_id=0))
    assert quarantine.samples == set(REFUSED)


def test_a_gpu_that_refuses_many_no_longer_decodes(refusing, monkeypatch):
    specs = []

    class OnGpu(DecodeFailures):
        """Deals with failures as beside a GPU, whose graph this machine need not have."""

        def settle(self, ids, spec):
            specs.append(spec)
            return super().settle(ids, dataclasses.replace(spec, device_id=None if spec.decode_on_cpu else 0))

    monkeypatch.setattr(loader_module, "DecodeFailures", OnGpu)
    monkeypatch.setattr(loader_module, "_MAX_REFUSED", 1)
    with loader(refusing, stop=7) as batches:
        assert sorted(np.concatenate([batch.ids for batch in batches])) == list(range(84))
        assert batches._spec.decode_on_cpu
    assert not specs[0].decode_on_cpu


def test_the_old_graph_is_gone_before_a_decoder_or_another_graph_is_made(archive_path, refusing, monkeypatch):
    graphs, alive = [], []
    build, alone = loader_module.build_graph, failures_module.build_decoder

    def build_watched(source, spec):
        alive.append([graph() is not None and graph()._pipe is not None for graph in graphs])
        graph = build(source, spec)
        graphs.append(weakref.ref(graph))
        return graph

    def decoder_watched(source, spec):
        alive.append([graph() is not None and graph()._pipe is not None for graph in graphs])
        return alone(source, spec)

    monkeypatch.setattr(loader_module, "build_graph", build_watched)
    monkeypatch.setattr(failures_module, "build_decoder", decoder_watched)
    gc.disable()
    try:
        with loader(refusing, stop=7) as batches:
            list(batches)
    finally:
        gc.enable()
    assert len(graphs) == 3
    assert not any(any(graph) for graph in alive)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "in operator x, encountered:\n\nthe reason\nelsewhere\nCurrent pipeline object is no longer valid.",
            "the reason",
        ),
        ("the reason", "the reason"),
        ("Current pipeline object is no longer valid.", "the decoder refuses it without a reason"),
        ("encountered:\n\nCurrent pipeline object is no longer valid.\n", "the decoder refuses it without a reason"),
        ("", "the decoder refuses it without a reason"),
    ],
)
def test_the_words_of_the_decoder_are_a_line(text, message):
    assert decoder_message(text) == message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_is_kept_without_loss(dtype):
    picture = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (13, 17, 3)).astype(dtype)
    pnm = encode_pnm(picture)
    np.testing.assert_array_equal(TrainingDecoder().decode(pnm, dtype), picture)
    levels = np.array(Image.open(io.BytesIO(pnm)))  # Pillow has no colour of 16 bits
    assert np.abs(levels - picture / np.iinfo(dtype).max * 255.0).max() < 1
