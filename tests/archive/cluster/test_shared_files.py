"""A node that does not see the files of the machine that asks it says so before it does anything."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fastfgssl.archive.cluster.shared_files import SharedFiles, shared_files
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.sources.base import SourceOptions
from helpers.containers import zip_of
from helpers.images import encode, gradient, write_files
