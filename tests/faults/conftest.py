"""One driver for all tests of faults, and the runs that faults are done to."""

from __future__ import annotations

import pytest

from helpers.faults import Driver
from helpers.faulty_runs import Finetuning, Preparing, Training


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    running = Driver(tmp_path_factory.mktemp("driver"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def training(driver, archive_path, tmp_path_factory) -> Training:
    return Training(driver, archive_path, tmp_path_factory.mktemp("faulty-training"))


@pytest.fixture(scope="session")
def finetuning(driver, archive_path, tmp_path_factory) -> Finetuning:
    return Finetuning(driver, archive_path, tmp_path_factory.mktemp("faulty-finetuning"))


@pytest.fixture(scope="session")
def preparing(driver, phantom_folder, tmp_path_factory) -> Preparing:
    few = tmp_path_factory.mktemp("few") / "source"
    few.mkdir()
    for image in sorted((phantom_folder / "images").iterdir())[:6]:
        (few / image.name).write_bytes(image.read_bytes())
    return Preparing(driver, few, tmp_path_factory.mktemp("faulty-preparing"))
