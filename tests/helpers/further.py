"""Cases of a test that the test command leaves to `make slow`."""

from __future__ import annotations

import pytest


def further(*cases: object) -> list:
    """Of a `parametrize`: what they show, another case has shown. A tuple is one case of several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
