"""The archive that a configuration names, in a folder or in an object store."""

from __future__ import annotations

import numpy as np

from fastfgssl.archive.cache import open_cached
from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import DataConfig
from fastfgssl.runtime.errors import UserError


def open_archive(data: DataConfig) -> Archive:
    """Opens `data.path`, by way of `data.cache` where it is a URL.

    Raises UserError for what is no archive, for a URL without a cache, and for a cache that is smaller than two windows
    of shards, which would bring every shard again and again.
    """
    if "://" not in data.path:
        return Archive.open(data.path, max_bad_share=data.max_bad_share)
    if not data.cache:
        raise UserError(
            f"data.path = {data.path!r}: set data.cache to a folder on a local disk, where its shards are kept while"
            " they are needed"
        )
    nbytes = int(data.cache_gib * 2**30)
    archive = open_cached(data.path, data.cache, nbytes)
    needed = int(np.sort(archive.shard_bytes)[-2 * data.window :].sum())
    if needed > nbytes:
        raise UserError(
            f"data.cache_gib = {data.cache_gib:g}: two windows of {data.window} shards take {needed / 2**30:.2f} GiB:"
            " raise it, or lower data.window"
        )
    return archive
