"""The jigsaw as a Triton kernel: for tensors that are on a GPU already.

A jigsaw moves bits, so the kernel knows no dtype: it copies the widest words that a row of a tile consists of. A
program writes a run of one image's words, which are contiguous in both memory formats; what it reads is contiguous for
as long as the row of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
_BLOCK = 1024
_MAX_BLOCKS = 65535  # of a launch's second axis


@triton.jit
def _jigsaw_kernel(
    source,
    permutation,
    target,
    planes_per_image,
    # shapes rarely change, and to divide by a number that the compiler knows takes no division
    words: tl.constexpr,  # of a plane
    row_words: tl.constexpr,
    grid: tl.constexpr,
    tile_height: tl.constexpr,
    tile_words: tl.constexpr,  # of a row of a tile
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    y, x = at // row_words, at % row_words
    tile_y, tile_x = y // tile_height, x // tile_words
    order = permutation + plane // planes_per_image * (grid * grid)
    tile = tl.load(order + tile_y * grid + tile_x, mask=inside, other=0).to(tl.int32)
    from_y = tile // grid * tile_height + (y - tile_y * tile_height)
    from_x = tile % grid * tile_words + (x - tile_x * tile_words)
    value = tl.load(source + plane * words + from_y * row_words + from_x, mask=inside)
    tl.store(target + plane * words + at, value, mask=inside)


def jigsaw_triton(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """The jigsaw of contiguous or channels-last images, in one launch; see `op.jigsaw`, which checks its arguments."""
    B, C, H, W = images.shape
    target = torch.empty_like(images)
    interleaved = not images.is_contiguous()
    # planes of H rows: channels apart, or all of them in one
    planes, row = (B, W * C) if interleaved else (B * C, W)
    size = images.element_size()
    tile_bytes = row // grid * size
    word = next(w for w in _WORDS if tile_bytes % w == 0 and images.data_ptr() % w == 0 and target.data_ptr() % w == 0)
    words, row_words = H * row * size // word, row * size // word
    if words > _MAX_BLOCKS * _BLOCK:
        raise ValueError(f"images: must have no more than {_MAX_BLOCKS * _BLOCK} words of {word} bytes, got {words}")
    dtype = _WORDS[word]
    programs = (planes, triton.cdiv(words, _BLOCK))
    _jigsaw_kernel[programs](
        _as_words(images, dtype, interleaved),
        permutation.contiguous(),
        _as_words(target, dtype, interleaved),
        planes // B,
        words,
        row_words,
        grid,
        H // grid,
        tile_bytes // word,
        BLOCK=_BLOCK,
    )
    return target


def _as_words(images: torch.Tensor, dtype: torch.dtype, interleaved: bool) -> torch.Tensor:
    """The same memory as a run of words."""
    in_order = images.permute(0, 2, 3, 1) if interleaved else images
    return in_order.reshape(-1).view(dtype)
