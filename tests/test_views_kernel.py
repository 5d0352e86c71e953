"""The views operator and the jigsaw against their reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types

from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.build import load_plugin
from fastfgssl.kernels.views.reference import Views, fan_out_reference, jigsaw_reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session", autouse=True)
def plugin():
    load_plugin()


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


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("source", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("side", "grids"), [(33, (11, 3, 1)), (63, (21, 9, 7)), (96, (32, 16, 8)), (224, (16, 8, 4)), (64, ())]
)
def test_operator_equals_reference(side, grids, channels, source, dtype, device):
    rng = np.random.default_rng(side * channels)
    batch = 9  # every combination of the three flags, and one more
    shape = (batch, side, side, channels)
    puzzle, anchor = (rng.integers(0, np.iinfo(source).max + 1, shape).astype(source) for _ in range(2))
    arguments = {
        "puzzle_flags": np.arange(batch) % 8,
        "anchor_flags": np.arange(batch)[::-1] % 8,
        "permutations": random_permutations(rng, batch, grids),
        "grids": grids,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "dtype": dtype,
    }
    got = run_operator(puzzle, anchor, **arguments, device=device)
    assert_same_bits(got, fan_out_reference(puzzle, anchor, **arguments))


def test_operator_takes_images_that_are_not_square():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    arguments = {
        "puzzle_flags": np.array([1, 6]),
        "anchor_flags": np.array([0, 3]),
        "permutations": random_permutations(rng, 2, (4, 2)),
        "grids": (4, 2),
        "mean": MEAN,
        "std": STD,
        "dtype": np.float32,
    }
    assert_same_bits(run_operator(images, images, **arguments), fan_out_reference(images, images, **arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": (5,), "permutations": [np.arange(25)[None]]}, "5 does not divide images of 8 x 8"),
        ({"permutations": [np.zeros((1, 4), int)]}, "not a permutation of 0..3"),
        ({"permutations": [np.array([[0, 1, 2, 4]])]}, "not a permutation of 0..3"),
        ({"mean": (0.5, 0.5)}, "one value or one a channel"),
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("side", "grid"), [(8, 1), (8, 2), (8, 8), (33, 11), (96, 16)])
def test_jigsaw_equals_reference(side, grid, memory_format):
    generator = torch.Generator().manual_seed(grid)
    images = torch.randn(3, 4, side, side, generator=generator).contiguous(memory_format=memory_format)
    permutation = torch.stack([torch.randperm(grid * grid, generator=generator) for _ in range(3)])
    shuffled = jigsaw(images, permutation, grid)
    torch.testing.assert_close(shuffled, jigsaw_reference(images, permutation, grid), rtol=0, atol=0)
    assert shuffled.is_contiguous(memory_format=memory_format)


def test_jigsaw_of_the_inverse_permutation_restores_the_image_and_is_the_gradient():
    images = torch.randn(2, 3, 12, 12, requires_grad=True)
    permutation = torch.stack([torch.randperm(16) for _ in range(2)])
    inverse = permutation.argsort(dim=1)
    shuffled = jigsaw(images, permutation, 4)
    torch.testing.assert_close(jigsaw(shuffled, inverse, 4), images, rtol=0, atol=0)
    upstream = torch.randn_like(images)
    shuffled.backward(upstream)
    torch.testing.assert_close(images.grad, jigsaw(upstream, inverse, 4), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 8), torch.zeros(2, 4, dtype=torch.int64), 2), "images"),
        ((torch.zeros(2, 3, 9, 8), torch.zeros(2, 4, dtype=torch.int64), 2), "grid = 2"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(1, 4, dtype=torch.int64), 2), "permutation"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, dtype=torch.int32), 2), "permutation"),
    ],
)
def test_jigsaw_names_the_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        jigsaw(*arguments)
