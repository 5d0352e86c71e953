"""Files that an archive does not keep: TIFF with its pages and numbers, and the newer codecs."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter, ImageFileDirectory_v2

from fastfgssl.archive.images.decoded import FileSettings, images_of
from fastfgssl.archive.images.image import ImageSettings, read_picture
from fastfgssl.archive.images.jpeg_xl import jpeg_xl_size
from fastfgssl.archive.images.tiff import read_tiff
from fastfgssl.archive.outcome import PreparedImage, Unusable
from helpers.images import DECODER, REAL_DATA, RGB, encode, gradient, gradient_16_bit, real_data, run, run_all

GRAY = np.asarray(RGB.convert("L"))
SIXTEEN = np.asarray(gradient_16_bit())


def tiff(values: np.ndarray, *, photometric: int = 1, planar: int = 1, big: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of [height, width] or [height, width, channels] of any type, which Pillow cannot write."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    planes = np.moveaxis(values, -1, 0) if planar == 2 else values
    pixels = planes.astype(values.dtype.newbyteorder(big)).tobytes()
    strips = channels if planar == 2 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = {
        256: width,
        257: height,
        258: 8 * values.dtype.itemsize,
        259: 1,
        262: photometric,
        273: [8 + n * (len(pixels) // strips) for n in range(strips)],
        277: channels,
        278: height,
        279: [len(pixels) // strips] * strips,
        284: planar,
        339: kind,
    } | {int(tag[1:]): value for tag, value in tags.items()}
    directory, extra = b"", b""
    start = 8 + len(pixels)
    behind = start + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, list) else [value] * (channels if tag in (258, 339) else 1)
        body = struct.pack(f"{big}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            body, extra = struct.pack(f"{big}I", behind + len(extra)), extra + body
        directory += struct.pack(f"{big}HHI", tag, 4, len(numbers)) + body
    head = (b"II*\0" if big == "<" else b"MM\0*") + struct.pack(f"{big}I", start)
    return head + pixels + struct.pack(f"{big}H", len(entries)) + directory + bytes(4) + extra


def shown(image: PreparedImage) -> np.ndarray:
    """[height, width], or [height, width, 3] of a colour picture."""
    picture = DECODER.decode(image.data, np.uint16 if image.bit_depth == 16 else np.uint8)
    return picture[..., 0] if (picture == picture[..., :1]).all() else picture


@pytest.mark.parametrize("big", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_in_planes_or_pixels(dtype, planar, big):
    values = np.asarray(RGB).astype(dtype) * (257 if dtype == np.uint16 else 1)
    image = run(tiff(values, photometric=2, planar=planar, big=big))
    assert image.bit_depth == 8 * values.itemsize
    assert np.array_equal(shown(image), values)


@pytest.mark.parametrize("big", ["<", ">"])
@pytest.mark.parametrize("values", [GRAY, SIXTEEN, SIXTEEN // 16], ids=["8 bits", "16 bits", "12 bits"])
def test_white_is_zero(values, big):
    image = run(tiff(values, photometric=0, big=big))
    assert image.levels == (0, {"uint8": 255}.get(str(values.dtype), 4095 if values.max() < 4096 else 65535))
    assert np.array_equal(shown(image), image.levels[1] - values)
    assert np.array_equal(shown(run(tiff(values, big=big))), values)


@pytest.mark.parametrize("big", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_ct_values(dtype, big):
    values = (SIXTEEN // 32).astype(dtype) - 1000
    image = run(tiff(values, big=big))
    assert np.array_equal(shown(image).astype(int) - 32768, values)
    assert image.levels == (32768 - 1024, 32768 + 1023)
    assert image.notes == ("signed numbers: level = value + 32768",)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats(dtype):
    values = ((SIXTEEN / 65535) ** 2).astype(dtype)
    image = run(tiff(values))
    assert np.abs(shown(image) / 65535 - values.astype(float)).max() <= 0.51 / 65535
    assert image.notes == ("floats scaled to 16 bits: value = 0 + 1.5259e-05 x level",)


def test_highest_level_that_a_tiff_declares():
    dark = SIXTEEN // 100
    assert run(tiff(dark)).levels == (0, 1023)
    assert run(tiff(dark, t281=3000)).levels == (0, 4095)
    assert run(tiff(dark, t281=65535)).levels == (0, 1023)  # the default of many writers says nothing


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bits(orientation):
    image = run(tiff(SIXTEEN, t274=orientation))
    eight = Image.fromarray((SIXTEEN >> 8).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(shown(image) >> 8, shown(run(encode(eight, "PNG", exif=exif))))


def pages(*images: Image.Image, **options: object) -> bytes:
    return encode(images[0], "TIFF", save_all=True, append_images=images[1:], **options)


def test_pages_of_a_file_are_one_group():
    data, first = pages(gradient(30, 20), gradient(50, 40)), FileSettings(image=ImageSettings(pages="first"))
    (one, two), (only,) = (images_of(data, DECODER, settings) for settings in (FileSettings(), first))
    assert one.patient == two.patient != only.patient == ""


def test_a_sample_a_page():
    first, third = gradient(30, 20), gradient(50, 40).convert("L")
    data = pages(first, Image.new("L", (30, 20)), third)
    one, two, three = run_all(data)
    assert [image.part for image in (one, two, three)] == ["page 1", "page 2", "page 3"]
    assert (str(two), type(two)) == ("constant: all pixels are 0", Unusable)
    assert np.array_equal(shown(one), np.asarray(first))
    assert np.array_equal(shown(three), np.asarray(third))
    (only,) = run_all(data, pages="first")
    assert only == one._replace(part="", notes=("only the first of several pages or frames is used",))
    assert np.array_equal(np.asarray(read_picture(data, max_pixels=10**6)), np.asarray(first))


def test_a_page_that_is_too_large_or_damaged_costs_itself_alone():
    small, large = gradient(30, 20), gradient(300, 200)
    first, second, third = run_all(pages(small, large, small), max_pixels=1000)
    assert str(second) == "too large: 300 x 200 pixels, --max-pixels is 1000"
    assert shown(first).shape == shown(third).shape == (20, 30, 3)
    data = bytearray(pages(small, large, small, compression="tiff_lzw"))
    place = len(data) // 2
    data[place : place + 2000] = bytes(2000)
    outcomes = run_all(bytes(data))
    assert [type(outcome) for outcome in outcomes] == [PreparedImage, Unusable, PreparedImage]
    assert outcomes[1].part == "page 2"


def test_thumbnails_and_masks_are_no_pages():
    file = io.BytesIO()
    with AppendingTiffWriter(file, new=True) as writer:
        for size, kind in (((9, 9), 1), ((60, 50), 0), ((60, 50), 4)):  # reduced, a picture, a mask
            gradient(*size).save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
        data = file.getvalue()
    (image,) = run_all(data)
    assert (image.width, image.height, image.part) == (60, 50, "")


def test_pages_that_lead_in_a_circle_end():
    data = bytearray(tiff(GRAY))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    assert len(run_all(bytes(data))) == 1


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_a_stack_costs_no_more_for_each_page_that_it_has(monkeypatch, options):
    pages = [gradient(20 + page, 30) for page in range(40)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)
    loaded = 0
    load = ImageFileDirectory_v2.load

    def count(self: ImageFileDirectory_v2, file: object) -> None:
        nonlocal loaded
        loaded += 1
        load(self, file)

    monkeypatch.setattr(ImageFileDirectory_v2, "load", count)
    for page, picture in zip(pages, read_tiff(data, 10**6, every_page=True), strict=True):
        assert np.array_equal(picture.pixels, np.asarray(page))
    assert loaded <= 4 * len(pages)


def test_bigtiff():
    data = encode(RGB, "TIFF", big_tiff=True)
    assert data[2] == 43
    assert np.array_equal(shown(run(data)), np.asarray(RGB))


CODECS = {
    "JPEG 2000": lambda values: imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="jp2"),
    "JPEG 2000 codestream": lambda values: imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="j2k"),
    "JPEG-LS": imagecodecs.jpegls_encode,
    "JPEG XL": lambda values: imagecodecs.jpegxl_encode(values, lossless=True),
    "lossless JPEG": lambda values: imagecodecs.jpeg8_encode(values, lossless=True),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "values",
    [GRAY, np.asarray(RGB), SIXTEEN, np.asarray(RGB).astype(np.uint16) * 257],
    ids=["gray", "colour", "16-bit gray", "16-bit colour"],
)
def test_lossless_codecs_keep_every_level(codec, values):
    image = run(CODECS[codec](values))
    assert (image.format, image.bit_depth) == ("png", 8 * values.itemsize)
    assert np.array_equal(shown(image), values)


def test_bits_that_a_codec_declares():
    dark = SIXTEEN // 100
    for data in (
        imagecodecs.jpeg2k_encode(dark, bitspersample=12, reversible=True),
        imagecodecs.jpeg8_encode(dark, lossless=True, bitspersample=12),
    ):
        assert run(data).levels == (0, 4095)


def test_jpeg_of_12_bits():
    values = np.asarray(RGB).astype(np.uint16) * 16
    image = run(imagecodecs.jpeg8_encode(values, 95, bitspersample=12))
    assert (image.format, image.bit_depth, image.levels) == ("png", 16, (0, 4095))
    assert image.changes == ("12-bit or lossless JPEG became PNG",)
    assert np.abs(shown(image).astype(int) - values).mean() < 32


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 64), (61, 47), (160, 120), (1000, 40), (5000, 3)])
def test_size_of_a_jpeg_xl_is_known_before_decoding(size):
    picture = np.asarray(gradient(*size))
    data = imagecodecs.jpegxl_encode(picture)
    assert jpeg_xl_size(data) == size
    box = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    assert jpeg_xl_size(box + struct.pack(">I4s", 8 + len(data), b"jxlc") + data) == size
    if size[0] * size[1] > 1:
        with pytest.raises(Unusable, match=f"too large: {size[0]} x {size[1]} pixels"):
            run(data, max_pixels=size[0] * size[1] - 1)


def test_jpeg_ls_that_is_cut_off_is_refused():
    """Its decoder looks for the end for ever."""
    data = CODECS["JPEG-LS"](np.asarray(RGB))
    for size in (100, 301, len(data) // 2, len(data) - 2):
        with pytest.raises(Unusable, match=r"^damaged or unsupported JPEG-LS: its end is missing$"):
            run(data[:size])


@pytest.mark.parametrize("codec", ["JPEG 2000", "JPEG-LS", "JPEG XL", "lossless JPEG"])
def test_claimed_size_of_a_codec(codec):
    with pytest.raises(Unusable, match="too large: 61 x 47 pixels"):
        run(CODECS[codec](GRAY), max_pixels=61 * 47 - 1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_first_frame_of_an_animation(format):
    frames = [gradient(40, 30), Image.new("RGB", (40, 30), "red")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    image = run(data)
    assert image.notes == ("only the first of several pages or frames is used",)
    first = Image.open(io.BytesIO(data))
    first.seek(0)
    assert np.array_equal(shown(image), np.asarray(first.convert("RGB")))


@real_data
def test_real_cases():
    def case(name: str) -> PreparedImage:
        return run(Path(REAL_DATA, "cases", name).read_bytes())

    expected = np.asarray(Image.open(Path(REAL_DATA, "cases/miniswhite_16_expected.png"))).astype(int)
    turned = case("miniswhite_16.tif")
    offset = shown(turned).astype(int) - expected  # the file holds 1110 less the pixels, of which none says the 1110
    assert np.ptp(offset) == 0
    assert case("twelve_bits_in_sixteen.png").levels == (0, 4095)
    planes = imagecodecs.tiff_decode(Path(REAL_DATA, "cases/rgb16_planar.tif").read_bytes())
    assert np.array_equal(shown(case("rgb16_planar.tif")), np.moveaxis(planes, 0, -1))
    assert case("hounsfield_int16.tif").notes == ("signed numbers: level = value + 32768",)
    assert case("float32.tif").bit_depth == 16
    outcomes = run_all(Path(REAL_DATA, "cases/stack_first_page_black.tif").read_bytes())
    assert str(outcomes[0]) == "constant: all pixels are 0"
    assert [image.part for image in outcomes[1:]] == ["page 2", "page 3", "page 4"]


def test_a_later_frame_of_a_gif_that_claims_any_size_takes_neither_time_nor_memory():
    """Found by `make fuzz`: 4 GiB were taken, for a picture of which only the first frame is used."""
    data = encode(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90), RGB.rotate(180)])
    place = data.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", *RGB.size))
    huge = data[: place + 5] + b"\xff" * 4 + data[place + 9 :]
    assert run(huge).data == run(data).data
    place = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", *RGB.size))
    with pytest.raises(Unusable, match=r"^too large: 65535 x 65535 pixels"):
        run(data[: place + 5] + b"\xff" * 4 + data[place + 9 :])
