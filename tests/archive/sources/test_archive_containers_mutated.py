"""Whatever becomes of the bytes of a container, listing and reading it ends, without another error and in bounds."""

from __future__ import annotations

import random

import pytest

from fastfgssl.archive.sources import containers
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.folder import FolderSource
from helpers.containers import container_of, contents_of, write
from helpers.mutations import mutated

MUTATIONS = 400


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.zst"])
def test_mutations(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(containers, "PAUSES", ())
    files = {f"{i}.png": bytes(range(i, 200)) * i for i in range(6)}
    inner = {f"in{other}": container_of(other, files) for other in (".zip", ".tar.gz")}
    whole = container_of(suffix, {"0.png": b"first"} | inner | files)
    options = SourceOptions(depth=3, max_bytes=1 << 22)
    good = write(tmp_path / "good.png", b"good")
    for seed in range(MUTATIONS):
        data = mutated(whole, random.Random(seed))
        write(tmp_path / f"a{suffix}", data)
        found = contents_of(WithContainers(FolderSource(tmp_path, options), options))
        assert found[good.name] == b"good", seed
        assert sum(len(text) for text in found.values()) < 1 << 26
