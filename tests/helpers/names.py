"""A patient's name planted in image files, wherever a format has room for it, and the search for it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from helpers.images import encode, gradient

NAME = "Zoë Größenwahn"
SPELLINGS = [NAME.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be", "latin-1")]
TEXT = b" | ".join(SPELLINGS)
MOST_INFLATED = 1 << 22


def names_in(data: bytes) -> list[bytes]:
    """The spellings of the name in `data`, also in what zlib compressed, at any place."""
    texts = [data, *_inflated(data)]
    return [spelling for spelling in SPELLINGS if any(spelling in text for text in texts)]


def _inflated(data: bytes) -> Iterator[bytes]:
    for place in range(len(data) - 1):
        if data[place] & 0x0F == 8 and int.from_bytes(data[place : place + 2], "big") % 31 == 0:
            try:
                yield zlib.decompressobj().decompress(data[place:], MOST_INFLATED)
            except zlib.error:
                continue


def exif() -> Image.Exif:
    """With the name as artist, in a user comment, a maker note and a place."""
    tags = Image.Exif()
    tags[0x010E] = tags[0x013B] = NAME
    tags[0x9C9D] = NAME.encode("utf-16-le")  # XPAuthor
    tags.get_ifd(0x8769).update({0x9286: b"UNICODE\0" + TEXT, 0x927C: TEXT})
    tags.get_ifd(0x8825).update({0x001C: TEXT})
    return tags


def profile() -> bytes:
    """An ICC profile that is that of nobody else."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made += TEXT
    made[:4] = struct.pack(">I", len(made))
    return bytes(made)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def thumbnail() -> bytes:
    """A JPEG with the name in its comment."""
    return encode(gradient(16, 12), "JPEG", comment=TEXT)


def jpegs_with_names(image: Image.Image, **options: object) -> dict[str, bytes]:
    """JPEGs of `image`, by the place where the name is."""
    plain = encode(image, "JPEG", **options)

    def behind_start(*segments: bytes) -> bytes:
        return plain[:2] + b"".join(segments) + plain[2:]

    def before_scan(extra: bytes) -> bytes:
        place = plain.index(b"\xff\xda")
        return plain[:place] + extra + plain[place:]

    tagged = b"Exif\0\0" + exif().tobytes()[6:] + thumbnail()
    quantisation = b"\x03" + TEXT.ljust(64, b" ")[:64]  # a table that no channel uses
    huffman = b"\x13" + bytes(15) + b"\xff" + TEXT.ljust(255, b" ")[:255]
    return {
        "comment": encode(image, "JPEG", comment=TEXT, **options),
        "EXIF": encode(image, "JPEG", exif=exif(), **options),
        "EXIF's thumbnail": behind_start(jpeg_segment(0xE1, tagged)),
        "XMP": behind_start(jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + TEXT)),
        "IPTC": behind_start(jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0" + TEXT)),
        "ICC": encode(image, "JPEG", icc_profile=profile(), **options),
        "JFIF's thumbnail": behind_start(jpeg_segment(0xE0, b"JFXX\0\x10" + thumbnail())),
        "JFIF's header": behind_start(jpeg_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\x05\x05" + TEXT)),
        "Adobe's header": behind_start(jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + TEXT)),
        "other application segments": behind_start(*(jpeg_segment(0xE0 + n, TEXT) for n in range(2, 16))),
        "a second picture": encode(image, "MPO", save_all=True, append_images=[image.resize((9, 9))], exif=exif()),
        "after the end": plain + TEXT,
        "between segments": before_scan(TEXT),
        "a comment before the scan": before_scan(jpeg_segment(0xFE, TEXT)),
        "an unused quantisation table": before_scan(jpeg_segment(0xDB, quantisation)),
        "an unused Huffman table": before_scan(jpeg_segment(0xC4, huffman)),
        "tables that others replace": behind_start(
            jpeg_segment(0xDB, b"\0" + quantisation[1:] + quantisation),
            jpeg_segment(0xC4, b"\0" + huffman[1:] + huffman),
        ),
        "tables behind the last scan": plain[:-2] + jpeg_segment(0xDB, b"\0" + quantisation[1:]) + plain[-2:],
    }


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def pngs_with_names(image: Image.Image) -> dict[str, bytes]:
    """PNGs of `image`, by the place where the name is."""
    plain = encode(image, "PNG")
    end = plain.index(b"IDAT") - 4
    last = plain.rindex(b"IEND") - 4

    def chunk(name: bytes, body: bytes) -> bytes:
        return plain[:end] + png_chunk(name, body) + plain[end:]

    texts = PngInfo()
    texts.add_text("Patient", NAME)
    texts.add_text("Zipped", NAME * 9, zip=True)
    texts.add_itxt("Title", NAME, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", NAME)
    lines = zlib.decompress(b"".join(_bodies(plain, b"IDAT")))
    head = plain[:end]
    return {
        "texts": encode(image, "PNG", pnginfo=texts),
        "EXIF": encode(image, "PNG", exif=exif()),
        "ICC": encode(image, "PNG", icc_profile=profile()),
        "time and private chunks": chunk(b"prIv", TEXT),
        "suggested palette": chunk(b"sPLT", b"name\0\x08" + TEXT[:60]),
        "after the end": plain + TEXT,
        "before the end": plain[:last] + png_chunk(b"tEXt", TEXT) + plain[last:],
        "behind the picture": head + png_chunk(b"IDAT", zlib.compress(lines + TEXT)) + plain[last:],
        "behind the compressed data": head + png_chunk(b"IDAT", zlib.compress(lines) + TEXT) + plain[last:],
        "another IDAT": plain[:last] + png_chunk(b"IDAT", TEXT) + plain[last:],
    }


def _bodies(data: bytes, wanted: bytes) -> list[bytes]:
    place, bodies = 8, []
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == wanted:
            bodies.append(data[place + 8 : place + 8 + length])
        place += 12 + length
    return bodies


def others_with_names(image: Image.Image) -> dict[str, bytes]:
    """TIFF, WebP, BMP and GIF of `image`, by the place where the name is."""
    tags = ImageFileDirectory_v2()
    for tag in (270, 305, 315, 33432):
        tags[tag] = NAME
    tags[700] = TEXT  # XMP
    tags.tagtype[700] = 1
    bmp = encode(image, "BMP")
    gap = bmp[:10] + struct.pack("<I", struct.unpack_from("<I", bmp, 10)[0] + len(TEXT)) + bmp[14:54] + TEXT + bmp[54:]
    return {
        "TIFF's tags": encode(image, "TIFF", tiffinfo=tags, icc_profile=profile()),
        "TIFF's end": encode(image, "TIFF") + TEXT,
        "WebP's EXIF and XMP": encode(image, "WEBP", exif=exif(), xmp=TEXT, icc_profile=profile()),
        "WebP's end": encode(image, "WEBP", lossless=True) + TEXT,
        "BMP's gap": gap,
        "BMP's end": bmp + TEXT,
        "GIF's comment": encode(image, "GIF", comment=TEXT),
        "AVIF's EXIF": encode(image, "AVIF", exif=exif().tobytes()),
    }


def pixels(data: bytes) -> bytes:
    """Of a file that Pillow reads."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGB" if image.mode == "P" else image.mode).tobytes()
