"""Where images come from: one file a kind of source."""

from fastfgssl.archive.sources.folder import IMAGE_SUFFIXES, Entry, Found, find_images

__all__ = ["IMAGE_SUFFIXES", "Entry", "Found", "find_images"]
