"""tools/demo.py goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from helpers.paths import TOOLS

TOOL = TOOLS / "demo.py"


@pytest.mark.parametrize(
    ("complete", "expected"),
    [
        ([], ["phantom.py", "prepare.py", "train.py"]),
        (["images/labels.csv.partial"], ["phantom.py", "prepare.py", "train.py"]),
        (["images/labels.csv"], ["prepare.py", "train.py"]),
        (["images/labels.csv", "archive/manifest.json"], ["train.py"]),
    ],
)
def test_what_is_complete_is_not_made_again(tmp_path, monkeypatch, complete, expected):
    for name in complete:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    spec = importlib.util.spec_from_file_location("demo", TOOL)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    ran = []

    def record(name, *arguments):
        ran.append(name)
        if name == "train.py":
            raise KeyboardInterrupt  # the rest needs its checkpoints

    monkeypatch.setattr(demo, "_tool", record)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        demo.main()
    assert ran == expected
