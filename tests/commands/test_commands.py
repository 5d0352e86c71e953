"""The commands as people run them: by their three names, without a reader, with names of all kinds, and stopped."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.commands import COMMANDS, evaluate
from fastfgssl.commands import prepare as prepare_command
from fastfgssl.config.files import write_config
from fastfgssl.pretraining import pretrain
from fastfgssl.training.checkpoint import list_checkpoints
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_command, run_here
from helpers.further import further
from helpers.images import encode, gradient, write_files
from helpers.paths import TOOLS

MODULE = (sys.executable, "-m", "fastfgssl")
INSTALLED = (sys.executable, "-c", "import sys; sys.argv[0] = 'fastfgssl'; from fastfgssl.commands import run; run()")
# of which one is markup that has no beginning, and one markup that would be left out
CLASSES = ["melanoma [/in situ]", "nevus [benign]", "naevus naïf", "[red]"]


def run(*command, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"} | options.pop("variables", {})
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)


@pytest.mark.parametrize("name", ["train", "prepare", *further(*sorted({*COMMANDS} - {"train", "prepare"}))])
def test_each_command_has_three_names(name):
    ways = {
        f"{name}.py": (sys.executable, TOOLS / f"{name}.py"),
        f"fastfgssl {name}": (*MODULE, name),
        f"fastfgssl {name} ": (*INSTALLED, name),
    }
    helps, wrong = set(), set()
    for program, command in ways.items():
        told = run(*command, "--help")
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.startswith(f"usage: {program.strip()} [-h]")
        # the usage is broken where the program's name leaves room
        helps.add(" ".join(told.stdout.removeprefix(f"usage: {program.strip()}").split()))
        told = run(*command, "--no-such-option")
        wrong.add((told.returncode, told.stdout, told.stderr))
    assert len(helps) == 1
    assert "tools/" not in helps.pop()
    ((code, out, errors),) = wrong
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*; see --help\n", errors)


def test_the_commands_are_listed_and_a_misspelt_one_is_told():
    told = run(*MODULE)
    assert told.returncode == 0
    assert all(re.search(rf"^  {name} ", told.stdout, re.MULTILINE) for name in COMMANDS)
    assert {path.stem for path in TOOLS.glob("*.py")} == set(COMMANDS)
    told = run(*MODULE, "trian")
    assert (told.returncode, told.stderr) == (
        2,
        "error: 'trian' is not a command; did you mean 'train'?; see fastfgssl --help\n",
    )


def unread(name: str, *arguments: object) -> None:
    """Runs a command whose stdout nobody reads, as behind `| true`, to its end."""
    read, write = os.pipe()
    os.close(read)
    done = run_command(TOOLS / f"{name}.py", *arguments, stdout=write)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_images_are_generated_and_prepared_without_a_reader(tmp_path):
    unread("phantom", tmp_path / "images", "--images", 20, "--width", 48, "--height", 40)
    unread("prepare", tmp_path / "images", "--out", tmp_path / "archive")
    assert Archive.open(tmp_path / "archive").num_samples == 20
    unread("prepare", "--verify", tmp_path / "archive")
    unread("train", "--help")


def test_a_run_goes_on_to_its_end_without_a_reader(make_config, tmp_path):
    config = make_config(train__heads=[0], train__steps=30)
    write_config(config, tmp_path / "config.yaml")
    unread("train", "--config", tmp_path / "config.yaml")
    assert [record["step"] for record in read_metrics(Path(config.output))] == list(range(1, 31))


def test_a_diagnosis_is_kept_without_a_reader(make_config, tmp_path):
    write_config(make_config(train__heads=[0]), tmp_path / "config.yaml")
    told = tmp_path / "doctor.json"
    unread("doctor", "--config", tmp_path / "config.yaml", "--seconds", 0.05, "--json", told)
    assert json.loads(told.read_text())["verdict"]


@pytest.mark.slow
def test_other_commands_keep_what_they_make_without_a_reader(make_config, tmp_path, archive_path):
    settings = {"train__heads": ["all"], "train__steps": 3, "output": str(tmp_path / "tuned")}
    config = make_config(objective="supervised.plain", **settings)
    write_config(config, tmp_path / "config.yaml")
    unread("finetune", "--config", tmp_path / "config.yaml")
    assert [record["step"] for record in read_metrics(Path(config.output)) if "loss" in record] == [1, 2, 3]
    best = tmp_path / "tuned" / "checkpoints" / "best.pt"
    unread("predict", "--checkpoint", best, "--data", archive_path, "--out", tmp_path / "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 85
    unread("export", "--checkpoint", best, "--format", "torch.export", "--out", tmp_path / "network.pt2")
    assert (tmp_path / "network.pt2.md").exists()
    out = tmp_path / "comparison"
    words = ("--objectives", "fgssl.joint,untrained", "--seeds", 1, "--out", out)
    write_config(make_config(train__steps=2), tmp_path / "config.yaml")
    unread("compare", "--config", tmp_path / "config.yaml", *words)
    assert json.loads((out / "comparison.json").read_text())["equal_images"]
    unread("bench", "loss", "--rehearse", "--json", tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())


@pytest.fixture
def scored(make_config, phantom_folder, tmp_path) -> list:
    """The words after `evaluate` that score a network on classes whose names look like markup."""
    rows = list(csv.DictReader((phantom_folder / "labels.csv").open()))
    names = sorted({row["label"] for row in rows})
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(row | {"label": CLASSES[names.index(row["label"]) % len(CLASSES)]} for row in rows)
    prepare(
        PrepareOptions(sources=[phantom_folder], out=tmp_path / "archive", labels=tmp_path / "labels.csv", workers=1)
    )
    config = make_config(train__steps=1)
    pretrain(config)
    checkpoint = list_checkpoints(Path(config.output) / "checkpoints")[-1]
    words = ("--checkpoint", checkpoint, "--data", tmp_path / "archive", "--protocol", "knn")
    return [*words, "--json", tmp_path / "scores.json"]


def test_classes_that_look_like_markup_are_shown_as_they_are(scored, tmp_path, capsys):
    assert run_here(evaluate.main, *scored) == 0
    shown = capsys.readouterr().out
    told = run(*MODULE, "evaluate", *scored, variables={"PYTHONIOENCODING": "ascii"})
    assert told.returncode == 0, told.stderr
    for name in CLASSES:
        escaped = name.encode("ascii", "backslashreplace").decode()
        assert shown.count(name) == told.stdout.count(escaped) >= 2, name
    assert sorted(json.loads((tmp_path / "scores.json").read_text())["classes"]) == sorted(CLASSES)
    (tmp_path / "scores.json").unlink()
    unread("evaluate", *scored)
    assert json.loads((tmp_path / "scores.json").read_text())["results"]["all"]["confusion"]


def living_with(word: str) -> list[str]:
    """Command lines of processes in which `word` stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone meanwhile
            continue
        if word in line:
            found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_stopped_ends_its_ranks(tmp_path, number):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [*MODULE, "bench", "scaling"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 240
    while not any("train --config" in line and "torch.distributed" not in line for line in living_with(str(tmp_path))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)  # to this process alone, not to its group as a terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    while living_with(str(tmp_path)):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    assert not list(tmp_path.iterdir())  # nor what it wrote to measure


ALONE = {
    "prepare": "images --out {new}",
    "evaluate": "--checkpoint none --data none --protocol knn --json {new}",
    "compare": "--config demo --objectives untrained data.path=none --out {new}",
    "predict": "--checkpoint none --data none --out {new}",
    "export": "--checkpoint none --format torchvision --out {new}.pth",
    "doctor": "--config demo data.path=none --json {new}",
    "bench": "loss --json {new}",
    "demo": "--out {new}",
    "phantom": "{new} --images 3",
}


@pytest.mark.parametrize("name", ALONE)
def test_what_one_process_does_is_refused_to_several_ranks(name, tmp_path, monkeypatch, capsys):
    """Each would do all of it, and write into the same files."""
    main = importlib.import_module(f"fastfgssl.commands.{name}").main
    ranks = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    for variables in (ranks, {"OMPI_COMM_WORLD_SIZE": 2}):
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in variables.items():
                patch.setenv(variable, str(value))
            assert run_here(main, *ALONE[name].format(new=tmp_path / "new").split()) == 2
        assert re.fullmatch(
            r"error: .* start(:? it without torchrun or srun| with torchrun or srun).*\n", capsys.readouterr().err
        )
        assert not list(tmp_path.iterdir())
    assert {*ALONE} | {"train", "finetune"} == {*COMMANDS}


def test_a_tilde_in_an_option_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "images", {"1.png": encode(gradient(30, 30), "PNG")})
    assert run_here(prepare_command.main, "--out=~/archive", "~/images", "--key=~/key", "--workers=1") == 0
    assert run_here(prepare_command.main, "--verify=~/archive") == 0
    assert {"archive", "key"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "~").exists()
    for file in (TOOLS.parent / "fastfgssl" / "commands").glob("*.py"):
        assert "type=Path" not in file.read_text(), f"{file.name}: a path as it was typed; take user_path"
