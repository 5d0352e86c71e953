"""A run that the first release (871c60f) began is ended by this one, with the numbers that the release itself found.

`released/` holds what that release made on a CPU: an archive of 24 phantoms of 40 x 32 pixels, the configuration of a
run over it, its checkpoint after three steps of six, and metrics.jsonl of the other three without times. To make it
anew: tools/phantom.py, tools/prepare.py and tools/train.py of 871c60f with that configuration. That the two agree in
every bit is for helpers/compare_releases.py to show, on one machine; here the CPU may be another.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastfgssl.config.files import load_config
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import GraphSpec
from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.distributed import World

RELEASED = Path(__file__).parent / "released"


def test_a_run_of_the_first_release_is_resumed(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(RELEASED / "step_000000003.pt", tmp_path / "run" / "checkpoints")
    output = tmp_path / "run"
    pretrain(load_config(RELEASED / "config.yaml", [f"data.path={RELEASED / 'archive'}", f"output={output}"]))
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (RELEASED / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [4, 5, 6]
    for record, released in zip(found, expected, strict=True):
        assert record.keys() >= released.keys()
        for name, value in released.items():
            # updates from six images each amplify rounding: in step 6 one and two threads of a CPU differ by 6 %
            later = record["step"] > 4 and name not in ("epoch", "lr", "backbone_lr")
            if not later or name.startswith("loss"):
                assert record[name] == pytest.approx(value, rel=0.25 if later else 1e-3), (record["step"], name)
    # what its configuration does not name it goes on with as it was, and once more with the same command
    assert load_config(output / "config.yaml").data.view_sizes == "pixels"
    scored = load_pretrained(RELEASED / "step_000000003.pt").config
    graph = GraphSpec.of(scored, Needs(), World.alone(torch.device("cpu")), depth="8")
    assert graph.view_sizes == "pixels"
    again = load_config(
        RELEASED / "config.yaml", [f"data.path={RELEASED / 'archive'}", f"output={output}", "train.steps=7"]
    )
    assert pretrain(again)[:2] == (7, None)
    assert load_pretrained(output).config.data.view_sizes == "pixels"
