"""Archives and readers, pickled or copied, as processes need them that are not forked."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.open_files import OPEN_SHARDS
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.errors import UserError
from helpers.archives import make_samples, write


@pytest.fixture
def archive(tmp_path) -> Archive:
    return write(tmp_path / "archive", make_samples([100, 0, 512, 700, 1, 2000]), shard_bytes=1300)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda opened: pickle.loads(pickle.dumps(opened))])
def test_a_copy_reads_the_same(archive, again):
    """As processes need it that are not forked, and Python 3.14 forks none."""
    ids = np.arange(archive.num_samples)
    reader = Reader(archive)
    copied, of_reader = again(archive), again(reader)
    for name in ("offset", "size", "crc32", "id", "label"):
        assert copied.columns(ids, (name,))[name].tolist() == archive.columns(ids, (name,))[name].tolist()
    assert copied.fingerprint == archive.fingerprint
    for a, b in zip(of_reader.read(ids), reader.read(ids), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(pickle.dumps((archive, reader))) < 1000
    open_before = len(OPEN_SHARDS)
    del of_reader
    assert len(OPEN_SHARDS) < open_before  # a copy has files of its own, and gives them back


def test_a_copy_of_an_archive_that_was_replaced_says_so(archive):
    pickled = pickle.dumps(archive)
    write(archive.path, make_samples([5, 6, 7]), overwrite=True)
    with pytest.raises(UserError, match="is another one by now"):
        pickle.loads(pickled)
