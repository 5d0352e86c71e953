"""The archive: shards of encoded images, an index per shard, and a manifest."""
