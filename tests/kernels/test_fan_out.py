"""The views operator against its reference, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types

from fastfgssl.kernels.build import load_plugin
from fastfgssl.kernels.fan_out.reference import FLIP, TRANSPOSE, VERTICAL_FLIP, Views, fan_out_reference
from helpers.fan_out import random_flags
from helpers.gpu import gpu_case

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session", autouse=True)
def plugin():
    load_plugin()


M_PERTURB = -6


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds 0xFE bytes: NaN in float16, -1.7e38 in float32. What is not written stays so."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(M_PERTURB, 1)
    yield
    libc.mallopt(M_PERTURB, 0)


def test_fresh_memory_is_poisoned():
    assert np.isnan(np.empty(1 << 16, np.float16)).all()
    assert (np.empty(1 << 16, np.float32) < -1e38).all()


def random_permutations(rng: np.random.Generator, batch: int, grids) -> list[np.ndarray]:
    return [rng.permuted(np.tile(np.arange(g * g), (batch, 1)), axis=1) for g in grids]


def run_operator(
    puzzle, anchor, *, puzzle_flags, anchor_flags, permutations, grids, mean, std, dtype, device="cpu"
) -> Views:
    """The operator in a pipeline of its own, on a batch of arrays."""
    batch = len(puzzle)
    pipe = Pipeline(batch, num_threads=2, device_id=0 if device == "gpu" else None)
    tiles = np.concatenate([np.zeros((batch, 0), np.int32), *permutations], axis=1).astype(np.int32)
    with pipe:
        inputs = fn.external_source(
            source=lambda: (
                list(puzzle),
                list(anchor),
                puzzle_flags.astype(np.int32),
                anchor_flags.astype(np.int32),
                tiles,
            ),
            num_outputs=5,
            batch=True,
            layout=["HWC", "HWC", "", "", ""],
        )
        images = [image.gpu() if device == "gpu" else image for image in inputs[:2]]
        outputs = fn.fastfgssl_views(
            *images,
            puzzle_flags=inputs[2],
            anchor_flags=inputs[3],
            **({"permutations": inputs[4]} if len(grids) else {}),
            grids=list(grids),
            mean=list(mean),
            std=list(std),
            dtype=types.FLOAT16 if dtype == np.float16 else types.FLOAT,
        )
        pipe.set_outputs(*outputs)
    anchor_out, puzzle_out, *puzzles = (
        np.array((out.as_cpu() if device == "gpu" else out).as_tensor()) for out in pipe.run()
    )
    return Views(anchor_out, puzzle_out, tuple(puzzles))


def assert_same_bits(got: Views, want: Views) -> None:
    for name, a, b in [
        ("anchor", got.anchor, want.anchor),
        ("puzzle view", got.puzzle_view, want.puzzle_view),
        *((f"puzzle {k}", a, b) for k, (a, b) in enumerate(zip(got.puzzles, want.puzzles, strict=True))),
    ]:
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("device", ["cpu", gpu_case("gpu")])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("source", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("side", "grids"),
    [
        (33, (11, 3, 1)),
        (63, (21, 9, 7)),
        (64, ()),
        (64, (64, 64)),
        (96, (32, 16, 8)),
        (224, (16, 8, 4)),
        (448, (56, 7)),
    ],
)
def test_operator_equals_reference(side, grids, channels, source, dtype, device):
    rng = np.random.default_rng(side * channels)
    batch = 9
    shape = (batch, side, side, channels)
    puzzle, anchor = (rng.integers(0, np.iinfo(source).max + 1, shape).astype(source) for _ in range(2))
    arguments = {
        "puzzle_flags": random_flags(rng, batch, is_square=True),
        "anchor_flags": random_flags(rng, batch, is_square=True),
        "permutations": random_permutations(rng, batch, grids),
        "grids": grids,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "dtype": dtype,
    }
    got = run_operator(puzzle, anchor, **arguments, device=device)
    assert_same_bits(got, fan_out_reference(puzzle, anchor, **arguments))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_half_precision_rounds_ties_to_even_in_every_column(dtype):
    images = np.tile(np.array([2049, 2051, 4098, 4102, 65519, 65520, 1, 65535], np.uint16), 3)[None, None, :23, None]
    plain = {"puzzle_flags": np.zeros(1, int), "anchor_flags": np.zeros(1, int), "permutations": [], "grids": ()}
    for std in (1 / 65535, 3e4, 1e3):  # numbers of all sizes, subnormal ones and infinity too
        arguments = {**plain, "mean": (0.0,), "std": (std,), "dtype": dtype}
        with np.errstate(over="ignore"):
            assert_same_bits(run_operator(images, images, **arguments), fan_out_reference(images, images, **arguments))


@pytest.mark.parametrize(("height", "width"), [(0, 8), (8, 0)])
def test_operator_refuses_empty_images(height, width):
    image = np.zeros((1, height, width, 3), np.uint8)
    no_puzzles = {"puzzle_flags": np.zeros(1, int), "anchor_flags": np.zeros(1, int), "permutations": [], "grids": ()}
    with pytest.raises(RuntimeError, match=f"images: must not be empty, got {height} x {width}"):
        run_operator(image, image, **no_puzzles, mean=MEAN, std=STD, dtype=np.float32)


def altered(views: Views, **changes) -> Views:
    return views._replace(**changes)


def test_the_checker_rejects_wrong_kernels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    arguments = {
        "puzzle_flags": np.array([1, 2, 20]),
        "anchor_flags": np.array([4, 9, 2]),
        "permutations": random_permutations(rng, 3, (4, 2)),
        "grids": (4, 2),
        "mean": MEAN,
        "std": STD,
    }
    truth = fan_out_reference(images, images, **arguments)
    unwritten = truth.anchor.copy()
    unwritten[-1, -1, -1, -1] = np.nan
    fused = (images.astype(np.float64) / 255 - MEAN) / STD  # rounded once, not twice
    wrong = {
        "views exchanged": altered(truth, anchor=truth.puzzle_view),
        "a flip forgotten": fan_out_reference(images, images, **arguments | {"anchor_flags": np.array([4, 8, 2])}),
        "flags ignored": fan_out_reference(images, images, **arguments | {"puzzle_flags": np.zeros(3, int)}),
        "inverse permutation": fan_out_reference(
            images, images, **arguments | {"permutations": [p.argsort(axis=1) for p in arguments["permutations"]]}
        ),
        "an element not written": altered(truth, anchor=unwritten),
        "other rounding": altered(truth, puzzle_view=fused.astype(np.float32)),
        "half precision": fan_out_reference(images, images, **arguments, dtype=np.float16),
    }
    assert_same_bits(truth, truth)
    for views in wrong.values():
        with pytest.raises(AssertionError):
            assert_same_bits(views, truth)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rounding_is_no_worse_than_twice_that_of_pytorch(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    zeros = np.zeros(4, int)
    got = run_operator(
        images,
        images,
        puzzle_flags=zeros,
        anchor_flags=zeros,
        permutations=[],
        grids=(),
        mean=MEAN,
        std=STD,
        dtype=dtype,
    )
    exact = (images / 255 - np.array(MEAN)) / np.array(STD)
    plain = ((torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).numpy().astype(dtype)
    assert np.abs(got.anchor - exact).max() <= 2 * np.abs(plain - exact).max()


def test_operator_takes_images_that_are_not_square():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    arguments = {
        "puzzle_flags": np.array([1, 14]),
        "anchor_flags": np.array([8, 3]),
        "permutations": random_permutations(rng, 2, (4, 2)),
        "grids": (4, 2),
        "mean": MEAN,
        "std": STD,
        "dtype": np.float32,
    }
    assert_same_bits(run_operator(images, images, **arguments), fan_out_reference(images, images, **arguments))


def test_operator_refuses_to_transpose_what_is_not_square():
    image = np.zeros((1, 8, 12, 3), np.uint8)
    flags = {"puzzle_flags": np.zeros(1, int), "anchor_flags": np.array([TRANSPOSE]), "permutations": [], "grids": ()}
    with pytest.raises(RuntimeError, match="only square images can be transposed, these are 8 x 12"):
        run_operator(image, image, **flags, mean=MEAN, std=STD, dtype=np.float32)


@pytest.mark.parametrize("version", [fan_out_reference, run_operator])
def test_flags_make_the_eight_symmetries_of_a_square_and_come_before_the_cut(version):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    # numpy's own: turns of the image, and of the image after its rows and columns are exchanged
    truth = {
        0: image,
        TRANSPOSE | VERTICAL_FLIP: np.rot90(image),
        FLIP | VERTICAL_FLIP: np.rot90(image, 2),
        TRANSPOSE | FLIP: np.rot90(image, 3),
        TRANSPOSE: image.swapaxes(0, 1),
        VERTICAL_FLIP: image[::-1],
        FLIP: image[:, ::-1],
        TRANSPOSE | FLIP | VERTICAL_FLIP: np.rot90(image, 2).swapaxes(0, 1),
    }
    flags, permutation = np.array(list(truth)), random_permutations(rng, 1, (4,))[0]
    arguments = {"puzzle_flags": flags, "anchor_flags": flags[::-1], "grids": (4,), "mean": (0.0,), "std": (1 / 255,)}
    views = version(
        *[np.stack([image] * 8)] * 2, **arguments, permutations=[permutation.repeat(8, axis=0)], dtype=np.float32
    )
    np.testing.assert_allclose(views.puzzle_view, np.stack(list(truth.values())), rtol=1e-6)
    np.testing.assert_array_equal(views.anchor, views.puzzle_view[::-1])
    uncut = views.puzzle_view.reshape(8, 4, 6, 4, 6, 3).swapaxes(2, 3).reshape(8, 16, 6, 6, 3)
    cut = views.puzzles[0].reshape(8, 4, 6, 4, 6, 3).swapaxes(2, 3).reshape(8, 16, 6, 6, 3)
    np.testing.assert_array_equal(cut, uncut[:, permutation[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grids": (5,), "permutations": [np.arange(25)[None]]},
            "grid = 5: must divide the images' height 8",
        ),
        ({"permutations": [np.zeros((1, 4), int)]}, "grid 2, row 0 is not a permutation of 0..3"),
        ({"permutations": [np.array([[0, 1, 2, 4]])]}, "grid 2, row 0 is not a permutation of 0..3"),
        ({"mean": (0.5, 0.5)}, "one value or one a channel"),
        ({"std": (0.2, 0.2, 0.0)}, "std: must be greater than 0, got 0"),
        ({"mean": (float("nan"),)}, "mean: must be finite, got nan"),
        ({"anchor_flags": np.full(1, 32)}, "anchor_flags: must be 0 to 31, got 32"),
    ],
)
def test_operator_names_the_bad_argument(change, message):
    image = np.zeros((1, 8, 8, 3), np.uint8)
    arguments = {
        "puzzle_flags": np.zeros(1, int),
        "anchor_flags": np.zeros(1, int),
        "permutations": [np.arange(4)[None]],
        "grids": (2,),
        "mean": MEAN,
        "std": STD,
        "dtype": np.float32,
    }
    with pytest.raises(RuntimeError, match=message):
        run_operator(image, image, **{**arguments, **change})
