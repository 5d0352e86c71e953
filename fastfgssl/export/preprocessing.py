"""What images go through before a network sees them, for programs that have none of this package."""

from __future__ import annotations

from typing import Any

from fastfgssl.config.schema import Config

_CODE = '''import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2


def upright(image):
    """Turned as EXIF says; transparency is left out; 16-bit gray keeps its 16 bits."""
    image = ImageOps.exif_transpose(image)
    return image if image.mode == "I;16" else image.convert("{mode}")


transform = v2.Compose(
    [
        v2.Lambda(upright, Image.Image),
        v2.ToImage(),
        {channels}
        v2.Resize(({size}, {size}), interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
        v2.Normalize(mean={mean}, std={std}),
        v2.ToPureTensor(),
    ]
)'''


# in this order: of whole levels, torchvision's luminance is cut off, not rounded
_GRAY = ("v2.ToDtype(torch.float32, scale=True),", "v2.Grayscale(1),")
_COLOUR = ("v2.RGB(),", "v2.ToDtype(torch.float32, scale=True),")


def preprocessing_values(config: Config) -> dict[str, Any]:
    """What `evaluation.transform.PlainTransform` does, as plain values for JSON."""
    data, is_gray = config.data, config.model.in_channels == 1
    colour = "gray; colour by its luminance (ITU-R 601)" if is_gray else "RGB; gray as three equal channels"
    return {
        "size": [data.image_size, data.image_size],
        "resize": "the whole image, whatever its shape",
        "interpolation": "bilinear",
        "antialias": True,
        "colour": f"{colour}; transparency left out; upright as EXIF says",
        "value_range": [0.0, 1.0],
        "mean": list(data.mean),
        "std": list(data.std),
        "order": ["resize", "normalise"],
        "layout": "NCHW",
        "dtype": "float32",
    }


def torchvision_code(config: Config) -> str:
    """Python that makes `transform`, of torchvision's v2: PIL image or uint8 or uint16 tensor to float32 [C, S, S]."""
    data, is_gray = config.data, config.model.in_channels == 1
    return (
        _CODE.replace("{size}", str(data.image_size))
        .replace("{mode}", "L" if is_gray else "RGB")
        .replace("{channels}", f"\n{' ' * 8}".join(_GRAY if is_gray else _COLOUR))
        .replace("{mean}", str(list(data.mean)))
        .replace("{std}", str(list(data.std)))
    )
