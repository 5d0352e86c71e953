"""From a listing to an archive in its place: parts, plan, shards, tables."""
