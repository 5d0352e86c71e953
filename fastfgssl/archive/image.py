"""One image on its way into the archive: decoded completely, upright, not too large, and readable in training.

Two decoders have to agree on it. Pillow is the strict one, which says what is wrong with a damaged file. DALI is the
one that training uses; a picture that it reads differently, or not at all, is encoded anew in a form that it reads.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from fastfgssl.archive.outcome import PreparedImage, Unusable

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
}
ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(2, 9)  # its values that mean a turned or mirrored picture; 1 is upright, others are invalid
# Mean absolute difference, in levels, up to which two decoders show the same picture. Rounding of CMYK and palettes
# stays below 1; of what is misread, a gray + alpha TIFF differs by 18 of 255, Lab by 12, floats by 140.
SAME_PICTURE = 2.0


class TrainingDecoder:
    """The decoder of the training graph, DALI's on the CPU, for one image at a time.

    Building it takes about 3 ms; a call then costs no more than the decoding.
    """

    def __init__(self) -> None:
        self._pipelines: dict[np.dtype, Any] = {}

    def decode(self, data: bytes, dtype: type | np.dtype = np.uint8) -> np.ndarray | None:
        """The RGB picture [height, width, 3], valid until the next call, or None if DALI cannot decode it.

        `dtype` is uint8, or uint16 as training asks for if the archive has 16-bit images; both span their whole range.
        """
        dtype = np.dtype(dtype)
        if dtype not in self._pipelines:
            self._pipelines[dtype] = _decoding_pipeline(dtype)
            self._pipelines[dtype].build()
        pipeline = self._pipelines[dtype]
        try:
            pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
            (pictures,) = pipeline.run()
            return np.asarray(pictures[0])
        except RuntimeError:  # DALI's only one; the pipeline cannot be used after it
            del self._pipelines[dtype]
            return None


def _decoding_pipeline(dtype: np.dtype) -> Any:
    from nvidia.dali import fn, pipeline_def, types  # a second, which processes that decode nothing need not wait

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        wanted = types.UINT16 if dtype == np.uint16 else types.UINT8
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, dtype=wanted)

    return pipeline()


def prepare_image(data: bytes, decoder: TrainingDecoder, *, short_side: int | None, max_pixels: int) -> PreparedImage:
    """Verifies the encoded image `data` and changes no byte of it unless it must.

    It must if EXIF says that the picture is not upright, if its short side is above `short_side` pixels (None: any
    side is fine), or if the training decoder shows something else than Pillow. A JPEG is then encoded as JPEG of
    quality 95 without chroma subsampling, all else as PNG; 16-bit gray stays 16-bit. Nothing but pixels survives that.
    Raises Unusable with the reason, for more than `max_pixels` pixels before any of them is decoded.
    """
    format, image, turned = _load(data, max_pixels)
    bit_depth = _bit_depth(data, image)
    picture = plain_picture(ImageOps.exif_transpose(image) if turned else image)

    changes = ["turned upright"] if turned else []
    if short_side is not None and min(picture.size) > short_side:
        picture = _shrink(picture, short_side)
        changes.append("made smaller")
    if not changes and not _shows(decoder, data, picture):
        changes.append(f"{image.mode} {format} is not read rightly in training")
    if changes:
        if bit_depth == 16 and picture.mode != "I;16":
            changes.append("16-bit colour became 8-bit")  # Pillow has no 16-bit colour
            bit_depth = 8
        format = "JPEG" if format == "JPEG" else "PNG"
        data = _encode(picture, format)
        if not _shows(decoder, data, Image.open(io.BytesIO(data))):  # not `picture`: JPEG loses some of it
            raise Unusable(f"not readable in training: even encoded anew as {format}")
    # The second picture inside a JPEG is the camera's preview; in the other formats it is a page or a frame.
    several = format != "JPEG" and getattr(image, "is_animated", False)
    notes = ("only the first of several pages or frames is used",) if several else ()
    return PreparedImage(data, format.lower(), *picture.size, bit_depth, tuple(changes), notes)


def read_picture(data: bytes, *, max_pixels: int) -> Image.Image:
    """The encoded image `data` as `prepare_image` takes it: decoded completely, upright, in mode L, RGB or I;16.

    Raises Unusable with the reason.
    """
    _, image, turned = _load(data, max_pixels)
    return plain_picture(ImageOps.exif_transpose(image) if turned else image)


class _Loaded(NamedTuple):
    format: str
    image: Image.Image
    turned: bool  # EXIF says that the picture is not upright


def _load(data: bytes, max_pixels: int) -> _Loaded:
    """Decodes all of it; raises Unusable with the reason."""
    format = _format(data)
    image = _open(data, format, max_pixels)
    # these, Pillow turns as it loads them
    turned = isinstance(image, TiffImageFile) and image.tag_v2.get(ORIENTATION, 1) in TURNED
    try:
        image.load()
    except Exception as error:  # Pillow raises whatever the damage leads it to
        raise Unusable(_damaged(format, error)) from error
    return _Loaded(format, image, turned or _exif_orientation(image) in TURNED)


def _format(data: bytes) -> str:
    for signature, format in SIGNATURES.items():
        if data.startswith(signature) and (format != "WEBP" or data[8:12] == b"WEBP"):
            return format
    if not data:
        raise Unusable("empty file")
    if data.startswith(b"version https://git-lfs"):
        raise Unusable("not the image but a Git LFS pointer to it: run `git lfs pull`")
    raise Unusable(f"not a JPEG, PNG, TIFF, BMP or WebP file: it begins with {data[:16]!r}")


def _open(data: bytes, format: str, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # the limit below takes the place of Pillow's
    try:
        image = Image.open(io.BytesIO(data), formats=(format,))
    except Image.UnidentifiedImageError:
        raise Unusable(_damaged(format, _why_unidentified(data, format))) from None
    except Exception as error:
        raise Unusable(_damaged(format, error)) from error
    if image.width * image.height > max_pixels:
        raise Unusable(f"too large: {image.width} x {image.height} pixels, --max-pixels is {max_pixels}")
    return image


def _why_unidentified(data: bytes, format: str) -> Exception:
    """`Image.open` keeps to itself why a plugin refused the file: ask the plugin."""
    plugin, _ = Image.OPEN[format]
    try:
        plugin(io.BytesIO(data), "")
    except Exception as error:
        return error
    return Image.UnidentifiedImageError("Pillow does not recognise it")


def _damaged(format: str, error: Exception) -> str:
    return f"damaged or unsupported {format}: {' '.join(str(error).split()) or type(error).__name__}"


def _exif_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block makes no bad picture
        return 1


def _bit_depth(data: bytes, image: Image.Image) -> int:
    """Read from the file: Pillow's mode does not tell, it opens 16-bit colour as 8-bit."""
    depth = 8
    if image.format == "PNG":
        depth = data[24]  # IHDR
    elif isinstance(image, TiffImageFile):
        depth = max(image.tag_v2.get(258, (1,)))  # BitsPerSample
    return 16 if depth > 8 else 8


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as its EXIF says."""
    return ImageOps.exif_transpose(image) if _exif_orientation(image) in TURNED else image


def plain_picture(image: Image.Image) -> Image.Image:
    """The picture in mode L, RGB or I;16, as training sees it: transparency is left out, not blended.

    Raises Unusable for floats, and for integers beyond 16 bits.
    """
    if image.mode in ("L", "RGB", "I;16"):
        return image
    if image.mode == "F":
        raise Unusable("pixels are 32-bit floats: rescale them to 16-bit integers")
    if image.mode.startswith("I"):  # 32-bit, signed or big-endian integers
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise Unusable(f"pixels do not fit in 16 bits: they lie in {pixels.min()} to {pixels.max()}")
        return Image.fromarray(pixels.astype(np.uint16))
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _shrink(picture: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    size = width, height
    if picture.mode != "I;16":
        return picture.resize(size, Image.Resampling.BICUBIC)
    # In floats, because Pillow's 16-bit resampling goes wrong where bicubic weights overshoot the range.
    floats = Image.fromarray(np.asarray(picture, dtype=np.float32)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.rint(np.asarray(floats)).clip(0, 65535).astype(np.uint16))


def _encode(picture: Image.Image, format: str) -> bytes:
    picture.info = {}  # comments and profiles of the source, which Pillow would write again
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": "4:4:4"} if format == "JPEG" else {}
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _shows(decoder: TrainingDecoder, data: bytes, picture: Image.Image) -> bool:
    """Whether the training decoder makes `picture` of `data`."""
    expected = np.asarray(picture)
    decoded = decoder.decode(data, expected.dtype)
    if decoded is None or decoded.shape[:2] != expected.shape[:2]:
        return False
    if expected.ndim == 3 and np.array_equal(decoded, expected):  # nearly always
        return True
    total = 0
    for rows in range(0, len(expected), 256):  # in strips: the copies below are four times the size of the picture
        strip = expected[rows : rows + 256].astype(np.int32)
        strip = strip.reshape(*strip.shape[:2], -1)  # gray becomes [rows, width, 1]
        total += np.abs(decoded[rows : rows + 256] - strip).sum(dtype=np.int64)
    return total <= SAME_PICTURE * decoded.size
