"""A command in this process, as `fastfgssl` runs it: a process of its own would import torch and DALI anew."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from fastfgssl.runtime.console import run_tool


def run_here(main: Callable[[], int | None], *arguments: object) -> int:
    """The exit code of `main` with these arguments; what it prints is for `capsys`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastfgssl", *map(str, arguments)])
        for stream in ("stdout", "stderr"):  # which run_tool takes over
            patch.setattr(sys, stream, getattr(sys, stream))
        with pytest.raises(SystemExit) as ended:
            run_tool(main)
    return ended.value.code
