"""What several test files need: a small archive, a small configuration, and the operator built once."""

from __future__ import annotations

import logging
import multiprocessing.forkserver
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is defined

from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.config.files import config_from_values
from fastfgssl.config.schema import Config

pytest.register_assert_rewrite("helpers")

# Ranks, workers and commands are forked from a process that has imported what takes seconds to import.
multiprocessing.set_forkserver_preload(
    ["pytest", "sklearn.metrics", *(f"fastfgssl.{name}" for name in ("pretraining", "finetuning", "archive.prepare"))]
)
multiprocessing.forkserver.ensure_running()

# a job that a shell starts in the background ignores Ctrl-C, and so would the programs that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; new ones are looked for by `pytest --hypothesis-profile explore`.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory) -> Path:
    """84 labelled phantoms of 48 x 40 pixels."""
    folder = tmp_path_factory.mktemp("phantoms") / "source"
    write_phantoms(folder, 84, seed=1, width=48, height=40, workers=2)
    return folder


@pytest.fixture(scope="session")
def archive_path(phantom_folder, tmp_path_factory) -> Path:
    """An archive of them, in several shards."""
    out = tmp_path_factory.mktemp("archives") / "phantoms"
    key = out.parent / "key"
    key.write_text("00" * 32)  # groups, and what is drawn by them, are always the same
    labels = phantom_folder / "labels.csv"
    prepare(PrepareOptions(sources=[phantom_folder], out=out, labels=labels, shard_size=0.03, key=key))
    return out


@pytest.fixture(autouse=True)
def no_log_of_a_command_stays() -> None:
    """A command that ran in this process, in a test or a fixture, shows the library's log, as no library does."""
    logger = logging.getLogger("fastfgssl")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A `helpers.bucket.Bucket` of an S3 server of this process."""
    from helpers.bucket import serve_bucket  # whose assertions are rewritten from below on

    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with serve_bucket() as served:
        yield served


@pytest.fixture
def make_config(archive_path, tmp_path):
    """Builds a configuration that trains a tiny network in seconds; dotted keys override."""

    def make(**overrides) -> Config:
        values = {
            "output": str(tmp_path / "run"),
            "data.path": str(archive_path),
            "data.image_size": 32,
            "data.threads": 2,
            "data.window": 2,
            "model.backbone": "resnet18",
            "model.weights": "none",
            "model.width": 0.125,
            "model.grids": [8, 4, 2],
            "model.embedding_dim": 24,
            "model.block_dim": 16,
            "train.batch_size": 12,
            "train.steps": 4,
            "train.precision": "float32",
            "train.device": "cpu",
            "train.log_every": 1,
            "optim.name": "sgd",
            "optim.lr": 0.05,
        }
        overrides = {key.replace("__", "."): value for key, value in overrides.items()}
        if "train.epochs" in overrides:
            del values["train.steps"]
        return config_from_values(values | overrides)

    return make


def pytest_runtest_logreport(report) -> None:
    """On a GPU, whose time is short, a failure is told at once: the end may not come."""
    if torch.cuda.is_available() and report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        print(f"\nFAILED {report.nodeid}: {crash.message.splitlines()[0] if crash else report.longrepr}", flush=True)
