"""The fan-out of tensors: its cases, and the checker of its views."""

from __future__ import annotations

import numpy as np
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [
    (33, 33, (11, 3, 1)),
    (63, 63, (21, 9, 7)),
    (64, 64, ()),
    (64, 64, (64, 64)),
    (12, 20, (4, 2)),
    (7, 5, (1,)),
    (96, 96, (32, 16, 8)),
    (224, 224, (16, 8, 4)),
]


def make_case(height, width, grids, *, channels=3, source=np.uint8, batch=9) -> dict:
    """Arguments of the reference: random images, flags and permutations; from a batch of 32 on, all flags there are."""
    rng = np.random.default_rng(height * channels)
    puzzle, anchor = rng.integers(0, np.iinfo(source).max + 1, (2, batch, height, width, channels)).astype(source)
    return {
        "puzzle_images": puzzle,
        "anchor_images": anchor,
        "puzzle_flags": random_flags(rng, batch, is_square=height == width),
        "anchor_flags": random_flags(rng, batch, is_square=height == width),
        "permutations": [rng.permuted(np.tile(np.arange(g * g), (batch, 1)), axis=1) for g in grids],
        "grids": grids,
        "mean": MEAN[:channels],
        "std": STD[:channels],
    }


def random_flags(rng: np.random.Generator, batch: int, *, is_square: bool) -> np.ndarray:
    """int32 [batch], each combination of flags as often as the others; the transposition is for squares."""
    count = 32 if is_square else 16
    return np.resize(rng.permutation(count), batch).astype(np.int32)


def on(device: torch.device, case: dict) -> dict:
    """The same arguments as tensors."""

    def tensor(array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    arrays = {name: tensor(value) for name, value in case.items() if isinstance(value, np.ndarray)}
    return case | arrays | {"permutations": [tensor(permutation) for permutation in case["permutations"]]}


def require_same_bits(views, truth) -> None:
    for name, got, want in (
        ("anchor", views.anchor, truth.anchor),
        ("puzzle view", views.puzzle_view, truth.puzzle_view),
        *((f"puzzle {i}", got, want) for i, (got, want) in enumerate(zip(views.puzzles, truth.puzzles, strict=True))),
    ):
        assert got.is_contiguous(memory_format=torch.channels_last), name
        np.testing.assert_array_equal(got.permute(0, 2, 3, 1).cpu().numpy(), want, err_msg=name)
