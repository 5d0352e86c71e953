"""Small files of every kind that `prepare` and readers of archives parse, whole: what mutations begin with."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openpyxl
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from helpers import archives, heic
from helpers.containers import tar_of, zip_of
from helpers.dicom import WHEEL, dicom
from helpers.images import encode, gradient, gradient_16_bit, with_orientation
from helpers.names import png_chunk
from helpers.slides import slide, tissue

RGB = gradient(23, 17)
GRAY = RGB.convert("L")
DEEP = gradient_16_bit(23, 17)
_LARGEST_DICOM = 20_000  # bytes


def jpegs() -> list[bytes]:
    options: list[dict[str, Any]] = [
        {},
        {"progressive": True},
        {"subsampling": 2, "restart_marker_blocks": 1},
        {"comment": b"Jane Doe", "icc_profile": b"a profile", "xmp": b"<x:xmpmeta/>"},
    ]
    made = [encode(RGB, "JPEG", **option) for option in options]
    made += [encode(GRAY, "JPEG"), encode(RGB.convert("CMYK"), "JPEG"), with_orientation(RGB, 6, "JPEG")]
    twelve = np.asarray(DEEP) >> 4
    return [*made, imagecodecs.jpeg8_encode(twelve, bitspersample=12), imagecodecs.jpeg8_encode(twelve, lossless=True)]


def pngs() -> list[bytes]:
    made = [
        encode(image, "PNG") for image in (RGB, GRAY, DEEP, RGB.convert("P"), RGB.convert("RGBA"), GRAY.convert("1"))
    ]
    plain = made[0]
    text = (
        png_chunk(b"tEXt", b"Author\0Jane")
        + png_chunk(b"gAMA", struct.pack(">I", 45455))
        + png_chunk(b"sBIT", b"\5\6\5")
    )
    profile = png_chunk(b"iCCP", b"name\0\0" + zlib.compress(b"a profile"))
    moving = encode(RGB, "PNG", save_all=True, append_images=[RGB.rotate(90), RGB.rotate(180)])
    return [*made, plain[:33] + text + profile + plain[33:], moving, with_orientation(RGB, 3, "PNG")]


def tiffs() -> list[bytes]:
    made = [encode(image, "TIFF") for image in (RGB, GRAY, DEEP, RGB.convert("P"), RGB.convert("LAB"))]
    made += [encode(RGB, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")]
    made.append(encode(GRAY.convert("1"), "TIFF", compression="group4"))
    made.append(encode(RGB, "TIFF", save_all=True, append_images=[GRAY, RGB.rotate(90)]))
    values = np.asarray(DEEP)
    for pixels, options in (
        (values, {"photometric": "miniswhite"}),
        (values.astype(np.float32), {"bigtiff": True}),
        (values.astype(np.int16), {"byteorder": ">"}),
        (np.stack([values] * 3), {"planarconfig": "separate", "photometric": "rgb"}),
        (np.asarray(RGB), {"tile": (16, 16), "photometric": "rgb"}),
    ):
        made.append(_tiff(pixels, **options))
    return made


def by_pillow(format: str) -> list[bytes]:
    made = [encode(image, format) for image in (RGB, GRAY)]
    if format == "WEBP":
        made += [encode(RGB, format, lossless=True), encode(RGB, format, exif=_turned(), icc_profile=b"a profile")]
    if format == "BMP":
        made += [encode(RGB.convert("P"), format), encode(GRAY.convert("1"), format)]
    if format in ("WEBP", "GIF"):
        made.append(encode(RGB, format, save_all=True, append_images=[RGB.rotate(90), RGB.rotate(180)]))
    if format == "AVIF":
        made += [
            imagecodecs.avif_encode(np.asarray(DEEP) >> 6, bitspersample=10),
            encode(RGB, format, exif=_turned()),
        ]
    return made


def jpegs_2000() -> list[bytes]:
    return [
        encode(RGB, "JPEG2000"),
        imagecodecs.jpeg2k_encode(np.asarray(DEEP), codecformat="j2k"),
        imagecodecs.jpeg2k_encode(np.asarray(GRAY), codecformat="jp2"),
    ]


def jpegs_ls() -> list[bytes]:
    return [imagecodecs.jpegls_encode(np.asarray(image)) for image in (RGB, GRAY, DEEP)]


def jpegs_xl() -> list[bytes]:
    return [imagecodecs.jpegxl_encode(np.asarray(image)) for image in (RGB, GRAY, DEEP)]


def heics() -> list[bytes]:
    return list(heic.FILES.values())


def dicoms() -> list[bytes]:
    """Each behind the byte that chooses how it is read."""
    found = [path.read_bytes() for path in sorted(WHEEL.glob("*.dcm")) if path.stat().st_size < _LARGEST_DICOM]
    gray = np.asarray(GRAY)
    made = [dicom(np.asarray(image)) for image in (RGB, GRAY, DEEP)]
    made.append(dicom(np.stack([np.asarray(DEEP)] * 4), WindowCenter=400, WindowWidth=[40, 60], RescaleSlope=2))
    made.append(dicom(gray.astype(np.float32)))
    for syntax, frame in (
        ("1.2.840.10008.1.2.4.50", encode(GRAY, "JPEG")),
        ("1.2.840.10008.1.2.4.90", imagecodecs.jpeg2k_encode(gray, codecformat="j2k")),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode(gray)),
    ):
        attributes = {
            "Rows": 17,
            "Columns": 23,
            "BitsAllocated": 8,
            "BitsStored": 8,
            "HighBit": 7,
            "SamplesPerPixel": 1,
        }
        attributes["PhotometricInterpretation"] = "MONOCHROME2"
        made.append(dicom(encapsulate([frame]), syntax=UID(syntax), **attributes))
    return [bytes([number % 18]) + data for number, data in enumerate([*made, *found])]


def slides() -> list[bytes]:
    pixels = tissue(96, 128, [(40, 40, 25)])
    return [slide(pixels, mpp=0.5, levels=2), slide(pixels, mpp=0.25, levels=1, aperio=False, dpi=True)]


def zips() -> list[bytes]:
    plain, packed = zip_of(_files(), zipfile.ZIP_STORED), zip_of(_files())
    nested = zip_of({"in.zip": packed, "in.tar": tar_of(_files()), "a.png": b"a"}, zipfile.ZIP_STORED)
    streamed = io.BytesIO()
    with zipfile.ZipFile(_Forwards(streamed), "w", zipfile.ZIP_DEFLATED) as out:  # type: ignore[arg-type]
        out.writestr("a.png", b"abc" * 50)
        out.writestr("b.png", b"")
    return [plain, packed, zip_of(_files(), zipfile.ZIP_BZIP2), nested, streamed.getvalue(), packed[: len(packed) // 2]]


def tars() -> list[bytes]:
    """Each behind the byte that chooses how it is compressed."""
    long = {f"{'folder/' * 30}{n}.png": b"x" * n for n in range(2)}
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    pax = tarfile.TarInfo("ä.png")
    pax.pax_headers = {"comment": "Jane Doe", "path": "b.png"}
    made = [
        tar_of(_files(), format, [link, pax])
        for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    made += [tar_of(long, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    made.append(tar_of({"in.zip": zip_of(_files()), "in.tar": tar_of(_files()), "a.png": b"a"}))
    return [bytes([number % 3]) + _short(data) for number, data in enumerate(made)]


def gzips() -> list[bytes]:
    return [gzip.compress(data[1:], mtime=0) for data in tars()]


def csvs() -> list[bytes]:
    return [
        b"image,label,group\n1.png,a,p1\n2.png,nan,\n",
        b"\xef\xbb\xbfLabel;image\r\na;1.png\r\nb; 2.png\r\n",
        b'image\tlabel\n"1.png"\t"a\tb"\n\n2.png\tc\n',
        "image,label\n1.png,é\n".encode(),
    ]


def workbooks() -> list[bytes]:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in (["image", "label", "group"], ["1.png", 1.0, "p"], ["2.png", True, None]):
        sheet.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return [buffer.getvalue()]


def manifests() -> list[bytes]:
    _, stored, _ = _archive()
    return [stored, json.dumps(json.loads(stored) | {"version": 1}).encode()]


def tables() -> list[bytes]:
    return [_archive()[2]]


def archive_of(*, manifest: bytes | None = None, table: bytes | None = None) -> Path:
    """An archive of eight samples with another manifest, or with another table and a manifest that fits it."""
    folder, whole, whole_table = _archive()
    table = whole_table if table is None else table
    if manifest is None:
        known = json.loads(whole)
        facts = known["table"] | {"bytes": len(table), "sha256": hashlib.sha256(table).hexdigest()}
        manifest = json.dumps(known | {"table": facts}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "samples.arrow").write_bytes(table)
    return folder


@functools.cache
def _archive() -> tuple[Path, bytes, bytes]:
    """Where it lies for as long as the process runs, its manifest, and its table."""
    folder = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hostile-")
    _KEPT.append(folder)
    out = Path(folder.name, "archive")
    archives.write(out, archives.make_samples([100, 10, 1000, 20, 30, 40, 50, 60]), shard_bytes=1000)
    return out, (out / "manifest.json").read_bytes(), (out / "samples.arrow").read_bytes()


_KEPT: list[tempfile.TemporaryDirectory] = []


def _files() -> dict[str, bytes]:
    return {f"{n}.png": bytes(range(n, 90)) * n for n in range(4)} | {"folder/": b"", "folder/1.jpg": b"one"}


def _short(tar: bytes) -> bytes:
    """Without most of the zeros at its end."""
    return tar.rstrip(b"\0") + bytes(512 - len(tar.rstrip(b"\0")) % 512 + 1024)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _tiff(pixels: np.ndarray, *, bigtiff: bool = False, byteorder: str = "<", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff, byteorder=byteorder) as out:
        out.write(pixels, metadata=None, **options)
    return buffer.getvalue()


class _Forwards(io.RawIOBase):
    """A file that cannot be sought in, behind whose members their sizes follow."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)
