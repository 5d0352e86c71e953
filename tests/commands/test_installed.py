"""What `pip install .` gives: built from the sdist alone, and used where no checkout is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.paths import ROOT

SOURCES = ("*.h", "*.cuh", "*.cc", "*.cu")


class Installed:
    """The package in a folder of its own; `program` is the command that pip made."""

    def __init__(self, site: Path, wheel: Path, outside: Path, not_in_sdist: set[str]) -> None:
        self.not_in_sdist = not_in_sdist
        self.wheel, self.outside, self.program = wheel, outside, site / "bin" / "fastfgssl"
        self._variables = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), cwd=self.outside, env=self._variables, capture_output=True, text=True, timeout=600
        )


def build(*command: object, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """checkout -> sdist -> wheel -> folder; packages that it needs are those of this Python."""
    folder = tmp_path_factory.mktemp("installed")
    checkout, dist, site, outside = (folder / name for name in ("checkout", "dist", "site", "outside"))
    outside.mkdir()

    def ignored(place: str, names: list[str]) -> set[str]:
        made = {".git", ".venv", "build", "runs", "demo", "__pycache__"}
        return {name for name in names if name in made or name.startswith(".") or (Path(place) / name).is_symlink()}

    shutil.copytree(ROOT, checkout, ignore=ignored)
    build("setup.py", "-q", "sdist", "--dist-dir", dist, cwd=checkout)
    (archive,) = dist.glob("*.tar.gz")
    of_checkout = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    with tarfile.open(archive) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
        tar.extractall(folder, filter="data")
    shutil.rmtree(checkout)
    pip = ("-m", "pip", "-q", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    build(*pip, "wheel", *offline, "--no-build-isolation", "-w", dist, ".", cwd=folder / archive.name[:-7])
    (wheel,) = dist.glob("*.whl")
    build(*pip, "install", *offline, "--target", site, wheel, cwd=folder)
    of_builds = re.compile(r"(build|dist|[^/]*\.egg-info|\.[^/]*)(/|$)|.*\.py[cod]$")
    return Installed(site, wheel, outside, {name for name in of_checkout - in_sdist if not of_builds.match(name)})


def test_the_sdist_has_all_that_tests_tools_and_documents_need(installed):
    assert not installed.not_in_sdist


def test_the_wheel_has_what_is_read_at_run_time(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    kernels = {f"fastfgssl/{path.relative_to(ROOT)}" for kind in SOURCES for path in (ROOT / "kernels").rglob(kind)}
    configs = {f"fastfgssl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.yaml")}
    assert len(kernels) > 10
    assert len(configs) > 3
    assert kernels | configs | {"fastfgssl/py.typed"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"fastfgssl"}


def test_the_package_is_that_one_and_finds_configurations_by_name(installed):
    code = (
        "import fastfgssl, fastfgssl.kernels\n"
        "print(fastfgssl.__file__, fastfgssl.kernels.__file__)\n"
        "print(fastfgssl.load_config('paper', ['data.path=a', 'output=b']).model.backbone)"
    )
    done = installed.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    files, backbone = done.stdout.splitlines()
    assert all(file.startswith(str(installed.program.parents[1])) for file in files.split())
    assert backbone == "resnet50"
    told = installed.run(sys.executable, "-m", "fastfgssl", "--help")
    assert told.returncode == 0
    assert told.stdout == installed.run(installed.program, "--help").stdout
    version = installed.run(installed.program, "--version").stdout.strip()
    assert installed.wheel.name.startswith(f"fastfgssl-{version}-")


SHORT = ("train.steps=2", "train.batch_size=16", "train.device=cpu")


@pytest.fixture(scope="module")
def demo(installed) -> str:
    """What a short demonstration prints."""
    done = installed.run(installed.program, "demo", "--out", "demo", "--images", "80", *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_demo_runs(installed, demo):
    assert "view matching, top-1" in demo
    assert "kNN, balanced accuracy" in demo
    for name in ("views.png", "metrics.jsonl"):
        assert (installed.outside / "demo" / "run" / name).exists()
        assert name in demo
    assert json.loads((installed.outside / "demo" / "matching_after.json").read_text())["step"] == 2


@pytest.mark.slow
def test_two_ranks_train_on_its_archive(installed, demo):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastfgssl"]
    done = installed.run(*torchrun, "train", "--config", "demo", "data.path=demo/archive", "output=two", *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, two = (
        [json.loads(line) for line in (installed.outside / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("demo/run", "two")
    )
    assert [record["step"] for record in two] == [record["step"] for record in alone]
    assert two[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=0.3)  # batch norms of 8 images, not of 16
