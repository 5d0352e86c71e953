"""A run holds no more of the machine at its end than at its beginning; the long form is part of `make soak`."""

from __future__ import annotations

import pytest

from helpers.endurance import ALLOWED, Endurance, Held, tiny_run, watched


def test_memory_descriptors_and_threads_do_not_grow(archive_path, tmp_path):
    made = watched(tiny_run(archive_path, tmp_path / "run", 400))
    assert made.growth <= ALLOWED, made


def test_what_grows_most_counts():
    assert Endurance(1, Held(1000, 20, 10), Held(1010, 21, 10)).growth == pytest.approx(0.05)
