"""Where things are in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
