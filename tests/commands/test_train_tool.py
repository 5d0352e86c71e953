"""tools/train.py as people run it: under torchrun, with Ctrl-C, with mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastfgssl.commands import train
from fastfgssl.config.files import write_config
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here
from helpers.paths import TOOLS
from helpers.runs import wait_for_steps

TOOL = TOOLS / "train.py"


def run_tool(*arguments, ranks: int = 0) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(TOOL), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("ranks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_ctrl_c_saves_and_the_same_command_goes_on(make_config, tmp_path, ranks):
    config = make_config(train__steps=2000, train__heads=[0])
    write_config(config, tmp_path / "config.yaml")
    process = run_tool("--config", str(tmp_path / "config.yaml"), ranks=ranks)
    output = Path(config.output)
    wait_for_steps(output, 2, process)
    (start,) = json.loads((output / "provenance.json").read_text())
    assert start["command"][-3:] == [str(TOOL), "--config", str(tmp_path / "config.yaml")]  # each word as it was typed
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the launcher and to every rank
    out, errors = process.communicate(timeout=120)
    done = read_metrics(output)[-1]["step"]
    assert f"stopped after step {done} of 2000" in out
    if not ranks:
        assert process.returncode == 128 + signal.SIGINT
        assert "Traceback" not in errors
    assert load_checkpoint(list_checkpoints(output / "checkpoints")[-1])["step"] == done
    process = run_tool("--config", str(tmp_path / "config.yaml"), f"train.steps={done + 2}", ranks=ranks)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert [record["step"] for record in read_metrics(output)] == list(range(1, done + 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["--config", "{config}", "optim.lrr=1"], "did you mean 'optim.lr'"),
        (["--config", "{config}", "data.path=nowhere"], "nowhere is not an archive"),
        (["--config", "{config}", "data.views=papers"], "did you mean 'paper'"),
        (["--config", "{config}", "model.backbone=resnet"], "must be a ResNet of torchvision"),
        (["--config", "{config}", "output=/proc/run"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(make_config, tmp_path, capsys, arguments, message):
    write_config(make_config(), tmp_path / "config.yaml")
    code = run_here(train.main, *(argument.format(config=tmp_path / "config.yaml") for argument in arguments))
    errors = capsys.readouterr().err
    assert code == 2
    lines = [line for line in errors.splitlines() if not re.match(r".*[Ww]arning|\s", line)]
    assert len(lines) == 1
    assert message in lines[0]


def test_so_it_is_in_a_process_of_its_own(make_config, tmp_path):
    write_config(make_config(), tmp_path / "config.yaml")
    process = run_tool("--config", str(tmp_path / "config.yaml"), "data.path=nowhere")
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.count("nowhere is not an archive")) == (2, 1)
    assert "Traceback" not in errors


@pytest.mark.slow
def test_neither_a_bare_locale_nor_odd_names_are_in_the_way(make_config, tmp_path):
    write_config(make_config(train__steps=2), tmp_path / "config.yaml")
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    output = tmp_path / os.fsdecode(b"--r\xffun\n\xe2\x80\xae[bold]")
    for steps in (2, 3):
        command = [sys.executable, str(TOOL), "--config", str(tmp_path / "config.yaml")]
        command += [f"output={output}", f"train.steps={steps}"]
        done = subprocess.run(command, capture_output=True, env=os.environ | bare)
        assert (done.returncode, done.stderr) == (0, b"")
    assert [record["step"] for record in read_metrics(output)] == [1, 2, 3]


@pytest.mark.slow
def test_more_ranks_than_images_is_one_line(make_config, tmp_path):
    config = make_config(train__batch_size=2)
    write_config(config, tmp_path / "config.yaml")
    process = run_tool("--config", str(tmp_path / "config.yaml"), ranks=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(re.findall(r"^error: train.batch_size = 2: must be a multiple of 2, at least 4", errors, re.M)) == 1
    assert re.search(r"Root Cause[\s\S]*traceback : error: train.batch_size = 2", errors)  # torchrun's own last words


@pytest.mark.slow
def test_what_the_first_rank_cannot_write_is_one_line(make_config, tmp_path):
    write_config(make_config(), tmp_path / "config.yaml")
    process = run_tool("--config", str(tmp_path / "config.yaml"), "output=/proc/run", ranks=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(re.findall(r"^error: cannot write /proc/run/", errors, re.M)) == 1
    assert "fastfgssl/training/trainer.py" not in errors  # a traceback of ours; torchrun ends with one of its own
