"""Tars as they are read here: headers as the standard library reads them, and the same whether compressed or not."""

from __future__ import annotations

import gzip
import random
import tarfile

import pytest
import zstandard

from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.folder import FolderSource
from fastfgssl.archive.sources.streams import Damaged
from fastfgssl.archive.sources.tars import _header
from helpers.containers import contents_of, tar_of, write, zip_of
from helpers.mutations import with_checksums

FILES = {f"{n}.png": bytes([n + 1]) * 300 * n for n in range(4)}


def contents(folder, suffix: str, data: bytes) -> dict[str, bytes | str]:
    """Of a tar, by the names of its members."""
    packed = {".tar.gz": gzip.compress, ".tar.zst": zstandard.compress}.get(suffix, bytes)(data)
    return packed_contents(folder, suffix, packed)


def packed_contents(folder, suffix: str, packed: bytes) -> dict[str, bytes | str]:
    path, options = write(folder / f"a{suffix}", packed), SourceOptions(depth=3)
    found = contents_of(WithContainers(FolderSource(path, options), options))
    path.unlink()
    return {name.removeprefix(f"a{suffix}").removeprefix("!/"): what for name, what in found.items()}


def test_headers_are_read_as_the_standard_library_reads_them():
    dice = random.Random(0)
    whole = []
    for name, size, kind in (
        ("a/1.png", 700, b"0"),
        ("b" * 140 + "/c", 1 << 40, b"\0"),
        ("d/", 0, b"\0"),
        ("e", 3, b"S"),
    ):
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        whole += [
            info.tobuf(format)[-512:]
            for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)
            if size < 1 << 33 or format
        ]
    seen = set()
    for _ in range(4000):
        block = bytearray(dice.choice(whole))
        for _ in range(dice.choice((0, 1, 3))):
            at = dice.choice((dice.randrange(512), dice.randrange(124, 136), dice.randrange(148, 157)))
            block[at] = dice.choice((0, 0x20, 0x30, 0x37, 0x80, 0xFF, dice.randrange(256)))
        block = bytearray(with_checksums("tar", b"-" + block)[1:]) if dice.random() < 0.7 else block
        if dice.random() < 0.1:  # as some old programs summed
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % (sum((byte ^ 0x80) - 0x80 for byte in block) % (1 << 18))
        try:
            theirs = tarfile.TarInfo.frombuf(bytes(block), "latin-1", "strict")
        except (tarfile.HeaderError, ValueError):
            theirs = None
        try:
            ours = _header(bytes(block))
        except Damaged:
            ours = None
        if theirs is None or theirs.size < 0:
            # fields that nobody asks for here may be anything
            seen.add("refused" if ours is None else "more")
            continue
        assert ours is not None
        assert (ours.name.rstrip(b"/"), ours.size, ours.type) == (
            theirs.name.encode("latin-1").rstrip(b"/"),
            theirs.size,
            theirs.type,
        )
        seen.add("read")
    assert {"refused", "read"} <= seen


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_what_lies_before_the_cut_is_kept_wherever_it_is(tmp_path, suffix):
    data = tar_of(FILES)
    whole = contents(tmp_path, suffix, data)
    assert whole == FILES
    start = data.index(b"3.png") + 512
    for end in (start, start + 899, start + 900, start + 901):
        found = contents(tmp_path, suffix, data[:end])
        assert found.pop("").startswith("quarantined: damaged container: it ")
        assert found == {name: FILES[name] for name in FILES if name != "3.png" or end >= start + 900}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_container_within_that_is_cut_off_gives_what_lies_before(tmp_path, suffix):
    for inner in (tar_of(FILES), zip_of(FILES)):
        kind = "tar" if inner.startswith(b"0.png") else "zip"
        data = tar_of({"a.png": b"a", f"in.{kind}": inner})
        found = contents(tmp_path, suffix, data[: data.index(b"3.png") + 10])
        assert found.pop("a.png") == b"a"
        assert found.pop("").startswith("quarantined: damaged container: it is cut off")
        assert found.pop(f"in.{kind}").startswith("quarantined: damaged container: ")
        assert found == {f"in.{kind}!/{name}": FILES[name] for name in list(FILES)[:3]}


def test_gzip_files_of_several_members(tmp_path):
    data = tar_of(FILES)
    parts = [gzip.compress(part) for part in (data[:700], b"", data[700:])]
    assert packed_contents(tmp_path, ".tar.gz", b"".join(parts)) == FILES
    assert packed_contents(tmp_path, ".tar.gz", bytes(100).join(parts) + bytes(1 << 17)) == FILES
    found = packed_contents(tmp_path, ".tar.gz", b"".join(parts) + b"something else")
    assert found.pop("") == "quarantined: damaged container: it is no gzip file where one must be: b'somethin'"
    assert found == FILES
    assert packed_contents(tmp_path, ".tar.gz", b"")[""].startswith("quarantined: damaged container: ")
