"""Batches: the right pictures, the same stream however it is cut, and a run that outlives broken samples."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import depth_of
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.presets import PLAIN, PRESETS, Preset, ViewSpec
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import draw_view_params
from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.blur.reference import blur_reference
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE, fan_out_reference
from fastfgssl.runtime.errors import UserError
from helpers.gpu import gpu_case
from helpers.loader import BATCH, SEED, loader, spec, tensors


def assert_equal(a, b) -> None:
    np.testing.assert_array_equal(a.ids, b.ids)
    for x, y in zip(tensors(a), tensors(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_batches_are_channels_last_tensors_of_the_asked_type(archive_path):
    batch = next(loader(archive_path, half=True))
    assert len(batch.puzzles) == 3
    for view in tensors(batch):
        assert view.shape == (BATCH, 3, 32, 32)
        assert view.dtype == torch.float16
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert batch.nbytes == 5 * BATCH * 3 * 32 * 32 * 2


def test_the_stream_holds_every_sample_once_an_epoch_and_ends(archive_path):
    batches = list(loader(archive_path, stop=7))
    assert len(batches) == 7  # 84 images in batches of 12
    assert sorted(np.concatenate([batch.ids for batch in batches])) == list(range(84))


@pytest.mark.parametrize("name", PRESETS)
def test_starting_at_any_step_gives_the_batches_of_the_whole_stream(archive_path, name):
    whole = list(loader(archive_path, preset=PRESETS[name]))
    for start in (1, 6, 8):
        rest = list(loader(archive_path, start=start, preset=PRESETS[name], prefetch=1, threads=1))
        assert len(rest) == 9 - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert_equal(a, b)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_global_batches(archive_path, world_size):
    whole = list(loader(archive_path, stop=3))
    parts = [list(loader(archive_path, stop=3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        together = [part[step] for part in parts]
        np.testing.assert_array_equal(batch.ids, np.concatenate([part.ids for part in together]))
        for k, view in enumerate(tensors(batch)):
            torch.testing.assert_close(view, torch.cat([tensors(part)[k] for part in together]), rtol=0, atol=0)


def test_the_paper_views_are_those_of_pillow_and_torchvision(archive_path):
    """Decode by Pillow, resize by torchvision, blur by definition, the rest by the operator's reference."""
    archive = Archive.open(archive_path)
    batch = next(loader(archive_path))
    slots = Order(archive.shard_sizes, seed=SEED, window=2).slots(0, BATCH)
    params = draw_view_params(
        PRESETS["paper"], slots, seed=SEED, sizes=np.tile([48, 40], (BATCH, 1)), image_size=32, grids=(8, 4, 2)
    )
    sources = {"puzzle": [], "anchor": []}
    for i, payload in enumerate(Reader(archive).read(slots.ids)):
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(payload.tobytes())))).permute(2, 0, 1)
        resized = functional.resize(image, [32, 32], antialias=True).permute(1, 2, 0).numpy()
        for name, images in sources.items():
            sigma = getattr(params, name).sigma[i]
            images.append(np.rint(blur_reference(resized, sigma)).astype(np.uint8) if sigma > 0 else resized)
    flags = [
        FLIP * view.flip + GRAYSCALE * view.grayscale + SOLARISE * view.solarise
        for view in (params.puzzle, params.anchor)
    ]
    expected = fan_out_reference(
        np.stack(sources["puzzle"]),
        np.stack(sources["anchor"]),
        puzzle_flags=flags[0],
        anchor_flags=flags[1],
        permutations=params.permutations,
        grids=(8, 4, 2),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    kept = ~params.anchor.solarise  # a level more or less at the threshold turns a pixel over
    pairs = [(batch.anchor[kept], expected.anchor[kept]), (batch.puzzle_view, expected.puzzle_view)]
    pairs += list(zip(batch.puzzles, expected.puzzles, strict=True))
    for got, want in pairs:
        levels = np.abs(got.permute(0, 2, 3, 1).numpy() - want) * np.array([0.2, 0.3, 0.4]) * 255
        assert levels.mean() < 0.5
        assert levels.max() < 4


def test_the_plain_preset_shows_the_whole_image(archive_path):
    batch = next(loader(archive_path, preset=PLAIN, grids=()))
    assert batch.puzzles == ()
    torch.testing.assert_close(batch.anchor, batch.puzzle_view, rtol=0, atol=0)


def test_turned_views_are_the_image_turned_and_their_puzzles_cut_from_that(archive_path):
    symmetries = ViewSpec(flip=0.5, vertical_flip=0.5, quarter_turns=1.0)
    preset = Preset(puzzle=symmetries, anchor=symmetries)
    batch, upright = (next(loader(archive_path, preset=which, grids=(4,))) for which in (preset, PLAIN))
    order = Order(Archive.open(archive_path).shard_sizes, seed=SEED, window=2)
    params = draw_view_params(
        preset, order.slots(0, BATCH), seed=SEED, sizes=np.tile([48, 40], (BATCH, 1)), image_size=32, grids=(4,)
    )
    turned = 0
    for view, draws in ((batch.anchor, params.anchor), (batch.puzzle_view, params.puzzle)):
        for got, expected, *mirrored in zip(
            view, upright.anchor, draws.transpose, draws.flip, draws.vertical_flip, strict=True
        ):
            transpose, flip, vertical_flip = mirrored
            expected = expected.transpose(1, 2) if transpose else expected
            dims = [2] * bool(flip) + [1] * bool(vertical_flip)
            torch.testing.assert_close(got, expected.flip(dims), rtol=0, atol=0)
            turned += bool(transpose)
    assert 0 < turned < 2 * BATCH
    puzzles = jigsaw(batch.puzzle_view, torch.from_numpy(params.permutations[0]).long(), 4)
    torch.testing.assert_close(batch.puzzles[0], puzzles, rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["paper", "barlow", "grayscale"])
@pytest.mark.parametrize(
    "needs",
    [
        Needs(anchor=True, view=False, grids=(0, 0, 2)),
        Needs(anchor=True, view=True, grids=(0, 0, 0)),
        Needs(anchor=False, view=True, grids=(8, 0, 2)),
        Needs(anchor=True, view=False),
        Needs(anchor=False, view=False, grids=(0, 4)),
        Needs(labels=True),
    ],
)
def test_what_is_made_is_what_is_needed_and_the_same_as_with_all(archive_path, needs, preset):
    whole = next(loader(archive_path, preset=PRESETS[preset]))
    batch = next(loader(archive_path, preset=PRESETS[preset], needs=needs))
    assert (batch.anchor is not None, batch.puzzle_view is not None) == (needs.anchor, needs.view)
    assert [puzzle is not None for puzzle in batch.puzzles] == [grid > 0 for grid in needs.grids]
    for made, view in zip(tensors(batch), tensors(whole), strict=False):
        if made is not None:
            torch.testing.assert_close(made, view, rtol=0, atol=0)
    assert (batch.labels is not None) == needs.labels


def test_labels_are_those_of_the_samples(archive_path):
    archive = Archive.open(archive_path)
    batch = next(loader(archive_path, needs=Needs(grids=(8, 4), labels=True)))
    np.testing.assert_array_equal(batch.labels, archive.columns(batch.ids, ("label",))["label"])
    first, second = batch.chunk(2)
    assert torch.cat([first.labels, second.labels]).equal(batch.labels)
    np.testing.assert_array_equal(np.concatenate([first.ids, second.ids]), batch.ids)
    torch.testing.assert_close(torch.cat([first.puzzles[1], second.puzzles[1]]), batch.puzzles[1])


@pytest.fixture
def broken_archive(archive_path, tmp_path):
    """A copy with the bytes of samples 3, 4 and 40 overwritten after it was prepared."""
    copy = tmp_path / "broken"
    shutil.copytree(archive_path, copy)
    archive = Archive.open(copy)
    broken = np.array([3, 4, 40])
    rows = archive.columns(broken, ("shard", "offset", "size"))
    for shard, offset, size in zip(*rows.values(), strict=True):
        with archive.shard_path(int(shard)).open("r+b") as file:
            file.seek(int(offset))
            file.write(b"\x00" * int(size))
    return copy


@pytest.mark.parametrize("device_id", [None, gpu_case(0)])
def test_broken_samples_are_replaced_and_listed(archive_path, broken_archive, device_id, tmp_path, caplog):
    listed = tmp_path / "quarantine.csv"
    whole = list(loader(archive_path, device_id=device_id))
    survived = list(loader(broken_archive, device_id=device_id, quarantine=Quarantine(84, listed)))
    assert len(survived) == len(whole)
    substitutes = {3: 5, 4: 5, 40: 41}
    for a, b in zip(whole, survived, strict=True):
        np.testing.assert_array_equal([substitutes.get(i, i) for i in a.ids.tolist()], b.ids)
        intact = ~np.isin(a.ids, list(substitutes))
        torch.testing.assert_close(a.anchor[intact], b.anchor[intact], rtol=0, atol=0)
    lines = listed.read_text().splitlines()
    assert lines[0] == "sample,id,reason"
    assert sorted(line.split(",")[0] for line in lines[1:]) == ["3", "4", "40"]
    assert "changed since the archive was made" in lines[1]
    assert "stands in for it" in caplog.text
    # a second start knows them from the file and makes the same batches
    again = loader(broken_archive, device_id=device_id, quarantine=Quarantine(84, listed))
    for a, b in zip(survived, again, strict=True):
        assert_equal(a, b)
    assert listed.read_text().splitlines() == lines


def test_an_error_that_is_not_about_a_sample_is_raised(archive_path):
    batches = loader(archive_path, mean=(0.5, 0.5))
    with pytest.raises(RuntimeError, match="one value or one a channel"):
        next(batches)


def test_an_archive_without_any_sound_sample_is_refused(tmp_path):
    quarantine = Quarantine(2)
    quarantine.add(0, "a", "broken")
    with pytest.raises(UserError, match="none of the archive's 2 images"):
        quarantine.add(1, "b", "broken")


def gradient(path: Path, white: int, high: float, *, dtype: type = np.uint16) -> None:
    """From 0 to a share `high` of `white`."""
    levels = np.linspace(0, high * white, 40 * 40).reshape(40, 40)
    Image.fromarray(np.rint(levels).astype(dtype)).save(path)


@pytest.fixture
def mixed_archive(tmp_path):
    """Pictures that look alike, of 12, 16 and 8 bits."""
    source = tmp_path / "source"
    source.mkdir()
    gradient(source / "a.png", 4095, 1)
    gradient(source / "b.png", 65535, 0.99)
    gradient(source / "c.png", 255, 0.98, dtype=np.uint8)
    prepare(PrepareOptions(sources=[source], out=tmp_path / "mixed", workers=1))
    return tmp_path / "mixed"


def one_batch(path, **changes):
    archive = Archive.open(path)
    ids = np.arange(archive.num_samples)
    return next(
        Loader(
            archive,
            spec(**{"depth": depth_of(archive)} | changes),
            lambda step: Slots(ids, np.zeros_like(ids)),
            seed=0,
            quarantine=Quarantine(archive.num_samples),
            start=0,
            stop=1,
        )
    )


def test_images_of_every_depth_are_shown_by_their_own_levels(mixed_archive):
    assert depth_of(Archive.open(mixed_archive)) == "own"
    batch = one_batch(mixed_archive, preset=PLAIN, mean=(0, 0, 0), std=(1 / 255,) * 3)
    expected = np.linspace(0, 255, 40 * 40).reshape(40, 40)
    small = np.asarray(Image.fromarray(expected.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))
    for image, share in zip(batch.anchor.numpy(), (1, 0.99, 0.98), strict=True):
        np.testing.assert_allclose(image, np.broadcast_to(small * share, (3, 32, 32)), atol=1.6)


def test_images_of_every_depth_may_change_their_colours(mixed_archive):
    batch = one_batch(mixed_archive, preset=PRESETS["barlow"], mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert all(view.max() - view.min() > 60 for view in batch.puzzle_view)


def test_sixteen_bits_of_earlier_archives_keep_their_levels(mixed_archive):
    """Which do not tell black and white of each image: training goes on as it began."""
    batch = one_batch(mixed_archive, depth="16", preset=PLAIN, mean=(0, 0, 0), std=(1 / 65535,) * 3)
    levels = batch.anchor[0].unique()
    assert levels.min() < 60
    assert 3900 < levels.max() < 4095
    assert len(levels) > 500  # 8 bits would leave 16 of them


def test_earlier_sixteen_bits_take_the_grayscale_preset_and_the_colour_preset_says_that_it_does_not(mixed_archive):
    batch = one_batch(mixed_archive, depth="16", preset=PRESETS["grayscale"], mean=(0, 0, 0), std=(1 / 65535,) * 3)
    assert 2000 < batch.puzzle_view[0].max() < 6500
    with pytest.raises(UserError, match="16-bit"):
        one_batch(mixed_archive, depth="16", preset=PRESETS["barlow"])
