"""The plain transform: the whole image, resized and normalised, as the graph does it for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastfgssl.archive.images.pictures import plain_picture, upright
from fastfgssl.archive.outcome import Unusable
from fastfgssl.runtime.errors import UserError

_LUMINANCE = (0.299, 0.587, 0.114)
_WHITE = {torch.uint8: 255, torch.uint16: 65535}


class PlainTransform:
    """Turns an image into float32 [C, S, S], normalised as in training; a batch of tensors into [B, C, S, S].

    It takes a PIL image of any mode (turned upright as its EXIF says; transparency is left out), or a tensor [3, H, W],
    [1, H, W], or with a batch in front, of uint8 (white 255) or uint16 (white 65535). C is `model.in_channels`: gray
    becomes three equal channels, or colour its luminance (ITU-R 601). The whole image is resized to S x S by
    antialiased linear interpolation, whatever its shape, as training and evaluation do it; docs/export.md has by how
    much decoders and resizes differ. Raises `UserError` for anything else.
    """

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """image_size: S in pixels; mean, std: of each of the C channels, on a scale where white is 1."""
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)

    def __repr__(self) -> str:
        return f"PlainTransform(image_size={self.image_size}, mean={self.mean}, std={self.std})"

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        pixels = _pixels(image) if isinstance(image, Image.Image) else image
        if not isinstance(pixels, Tensor) or pixels.dtype not in _WHITE:
            kind = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UserError(f"transform: takes a PIL image or a tensor of uint8 or uint16, not {kind}")
        if pixels.ndim not in (3, 4) or pixels.shape[-3] not in (1, 3) or 0 in pixels.shape:
            raise UserError(f"transform: takes tensors [3, H, W] or [B, 3, H, W], not {list(pixels.shape)}")
        levels = (pixels if pixels.ndim == 4 else pixels[None]).float()
        if len(self.mean) == 1 and levels.shape[1] == 3:
            weights = torch.tensor(_LUMINANCE, device=levels.device)[:, None, None]
            levels = (weights * levels).sum(dim=1, keepdim=True).round()  # as decoders do
        batch = levels / _WHITE[pixels.dtype]
        size = (self.image_size, self.image_size)
        batch = functional.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, device=batch.device)[:, None, None] for values in (self.mean, self.std))
        batch = (batch - mean) / std
        return batch if pixels.ndim == 4 else batch[0]


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W] or [1, H, W], uint8 or uint16."""
    try:
        picture = plain_picture(upright(image))
    except Unusable as error:
        raise UserError(f"transform: {error}") from None
    pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
