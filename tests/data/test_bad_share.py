"""Too many damaged samples end a run, or a score, with a verdict; few, and shards that cannot be read, do not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.damage import most_bad
from fastfgssl.archive.manifest import Archive
from fastfgssl.commands import evaluate, train
from fastfgssl.config.files import write_config
from fastfgssl.data.quarantine import Quarantine, forget_unreadable
from fastfgssl.data.stream import whole_archive
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here
from helpers.damage import damage_sample, damaged_copy, run_through, same
from helpers.loader import loader
from helpers.ranks import run_on_ranks

TINY = {"objective": "helpers.tiny_objective", "data__image_size": 16, "data__threads": 1}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:]


@pytest.fixture
def copy(archive_path, tmp_path) -> Archive:
    return Archive.open(shutil.copytree(archive_path, tmp_path / "archive"))


@pytest.fixture(autouse=True)
def hurried(monkeypatch) -> None:
    """What cannot be read is tried again after milliseconds."""
    monkeypatch.setattr("fastfgssl.runtime.patience.PAUSES", (0.001, 0.001))


def test_few_are_borne_whatever_their_share():
    assert [most_bad(n, 0.01) for n in (1, 2, 50, 399, 400, 100_000)] == [0, 1, 3, 3, 4, 1000]
    assert [most_bad(1000, share) for share in (0.0, 1e-9, 0.5, 1.0)] == [0, 3, 500, 1000]


def replace_by_folder(file: Path) -> None:
    """A shard that is there and cannot be read, for root either."""
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("lose", [Path.unlink, replace_by_folder], ids=["missing", "unreadable"])
def test_a_shard_that_cannot_be_read_is_stood_in_for_until_the_next_start(archive_path, copy, tmp_path, lose):
    whole = run_through(loader(archive_path, stop=7))
    gone = np.flatnonzero(copy.columns(np.arange(84), ("shard",))["shard"] == 1)
    lose(copy.shard_path(1))
    file = tmp_path / "quarantine.csv"
    found = run_through(loader(copy, stop=7, quarantine=Quarantine(84, file)))
    assert same(found, whole, [~np.isin(batch["ids"], gone) for batch in whole])  # good samples: bit for bit
    assert not set(gone) & set(np.concatenate([batch["ids"] for batch in found]))
    assert sorted(int(line.split(",")[0]) for line in lines(file)) == gone.tolist()
    assert all("for now: cannot read" in line for line in lines(file))
    Quarantine(84, file).add(int(gone[-1]) + 1, "x", "its bytes changed")
    forget_unreadable(file)
    assert Quarantine(84, file).samples == {gone[-1] + 1}  # what was damaged stays


def test_an_archive_short_of_shards_is_opened_if_these_hold_few(copy, make_config, caplog):
    samples = int(copy.shard_sizes[1])
    copy.shard_path(1).unlink()
    assert samples > 3
    with pytest.raises(UserError, match=r"is incomplete: shards/shard-000001.tar: No such file"):
        Archive.open(copy.path)
    with pytest.raises(UserError, match=rf"^{samples} of the 84 images .* above data.max_bad_share = 0.01\): archive"):
        pretrain(make_config(data__path=str(copy.path)))
    assert Archive.open(copy.path, max_bad_share=samples / 84).num_samples == 84
    assert f"their {samples} samples are left out when they are met" in caplog.text


def test_a_run_stops_with_a_verdict_and_goes_on_when_it_may(archive_path, make_config, tmp_path, capsys):
    archive, damaged = damaged_copy(archive_path, tmp_path / "damaged", "flipped", 0.1)
    config = make_config(data__path=str(archive.path), train__steps=14, **TINY)
    write_config(config, tmp_path / "config.yaml")
    said = []
    for _ in range(2):  # and at once where an earlier start has listed them
        assert run_here(train.main, "--config", tmp_path / "config.yaml") == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert " of the 84 images are damaged or cannot be read (" in error
        assert error.count("its bytes changed since the archive was made") == 3
        assert f"all are in {config.output}/quarantine.csv; copy or prepare the archive again and remove" in error
        said.append(error)
    saved = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])["step"]
    assert f"stopped after step {saved} of 14, which is saved: " in said[0]
    assert "stopped after" not in said[1]
    assert [record["step"] for record in read_metrics(Path(config.output))] == list(range(1, saved + 1))
    assert run_here(train.main, "--config", tmp_path / "config.yaml", "data.max_bad_share=0.1") == 0
    assert {int(line.split(",")[0]) for line in lines(Path(config.output) / "quarantine.csv")} == damaged
    printed = " ".join(capsys.readouterr().out.split())
    assert f"quarantine.csv lists those, {len(damaged)} images, 9.5 % of all" in printed


def _pretrain(world, config) -> str:
    try:
        pretrain(config)
    except UserError as error:
        return str(error)
    return ""


def test_ranks_stop_together_where_one_has_met_them(copy, make_config):
    config = make_config(data__path=str(copy.path), train__steps=14, **TINY)
    of_second = whole_archive(config, copy).slots(6, 12).ids  # of the first step
    for sample in of_second[:4].tolist():
        damage_sample(copy, sample)
    said = run_on_ranks(_pretrain, 2, config, join=False)
    assert said[0] == said[1]
    told = re.search(r"stopped after step (\d+) of 14, which is saved: 4 of the 84 images are damaged", said[0])
    assert load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])["step"] == int(told[1]) < 14


def test_scores_of_a_damaged_archive_are_none(archive_path, make_config, tmp_path, capsys):
    run = make_config(train__steps=1)
    pretrain(run)
    archive, _ = damaged_copy(archive_path, tmp_path / "damaged", "zeroed", 0.3)
    arguments = ("--checkpoint", run.output, "--data", archive.path, "--protocol", "knn")
    assert run_here(evaluate.main, *arguments) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: {archive.path}: \d+ of the 84 images are damaged .*or raise data.max_bad_share", error)
