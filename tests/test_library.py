"""fastfgssl as a library: what `import fastfgssl` gives, in a program that has its own signals, logging and output."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fastfgssl
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import load_checkpoint
from helpers.paths import ROOT
from helpers.runs import losses

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def overrides(archive: Path, output: Path) -> list[str]:
    """Of the configuration demo, for a training of seconds."""
    small = ["data.image_size=32", "model.width=0.125", "model.embedding_dim=24", "model.block_dim=16"]
    return [*small, f"data.path={archive}", f"output={output}", "train.steps=3", "train.batch_size=12", "seed=3"]


def surroundings() -> tuple:
    """What belongs to the program that uses the library."""
    loggers = [logging.getLogger(name) for name in (None, "fastfgssl")]
    return (
        [signal.getsignal(number) for number in _SIGNALS],
        [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers],
        sys.stdout,
        sys.stderr,
        sys.excepthook,
    )


def test_two_trainings_in_one_process_are_equal_and_take_over_nothing(archive_path, tmp_path, capfd):
    before = surroundings()
    first, second = (
        fastfgssl.pretrain(fastfgssl.load_config("demo", overrides(archive_path, tmp_path / name)))
        for name in ("first", "second")
    )
    assert surroundings() == before
    assert capfd.readouterr().out == ""
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    weights, again = (load_checkpoint(outcome.checkpoint)["model"] for outcome in (first, second))
    assert all(weights[name].equal(again[name]) for name in weights)
    report = fastfgssl.evaluate(first.checkpoint, archive_path, "knn", device="cpu")
    assert report.step == first.steps_done == 3
    assert 0 <= report.results["all"]["balanced_accuracy"] <= 1
    assert surroundings() == before
    assert capfd.readouterr().out == ""


def test_it_works_in_a_thread_which_may_set_no_signals(phantom_folder, tmp_path):
    done = []

    def work() -> None:
        summary = prepare(PrepareOptions(sources=[phantom_folder], out=tmp_path / "archive", workers=2))
        config = fastfgssl.load_config("demo", overrides(tmp_path / "archive", tmp_path / "run"))
        done.append((summary.samples, fastfgssl.pretrain(config).steps_done))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [(84, 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"protocol": "lineer"},
            r"^protocol = 'lineer': must be one of matching, knn, linear, finetuned; did you mean 'linear'\?$",
        ),
        ({"batch_statistics": "z"}, "^batch_statistics = 'z': must be one of stored, recomputed$"),
        ({"split": "foo"}, "^split = 'foo': must be one of val, test, all$"),
    ],
)
def test_a_word_that_evaluation_does_not_know_is_told_before_any_work(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        fastfgssl.evaluate(tmp_path / "none.pt", tmp_path, **words)


def test_bad_input_is_an_exception_and_does_not_exit(tmp_path):
    with pytest.raises(UserError, match="no configuration is called demmo"):
        fastfgssl.load_config("demmo", ["data.path=nowhere"])
    with pytest.raises(UserError, match=str(tmp_path / "none.pt")):
        fastfgssl.evaluate(tmp_path / "none.pt", tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        fastfgssl.pretrian  # noqa: B018


def test_each_extra_that_a_message_tells_to_install_is_there():
    told = {
        name
        for path in (ROOT / "fastfgssl").rglob("*.py")
        for name in re.findall(r"fastfgssl\[(\w+)\]", path.read_text())
    }
    extras = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert "timm" in told
    assert told | {"wandb", "mlflow"} <= set(extras)


def test_the_import_is_light():
    code = (
        "import logging, signal, sys, fastfgssl\n"
        "assert {'load_config', 'pretrain', 'evaluate', 'load'} <= set(dir(fastfgssl))\n"
        "assert not {'torch', 'nvidia.dali', 'rich'} & set(sys.modules)\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('fastfgssl').handlers\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
