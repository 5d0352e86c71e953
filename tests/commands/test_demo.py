"""`fastfgssl demo` goes on where it was stopped."""

from __future__ import annotations

import sys

import pytest

from fastfgssl.commands import demo


@pytest.mark.parametrize(
    ("complete", "expected"),
    [
        ([], ["phantom", "prepare", "train"]),
        (["images/labels.csv.partial"], ["phantom", "prepare", "train"]),
        (["images/labels.csv"], ["prepare", "train"]),
        (["images/labels.csv", "archive/manifest.json"], ["train"]),
    ],
)
def test_what_is_complete_is_not_made_again(tmp_path, monkeypatch, complete, expected):
    for name in complete:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ran = []

    def record(name, *arguments):
        ran.append(name)
        if name == "train":
            raise KeyboardInterrupt  # the rest needs its checkpoints

    monkeypatch.setattr(demo, "_command", record)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        demo.main()
    assert ran == expected
