"""What happens to disks and processes happens to a run: the same command goes on, to the same end.

The long form, every call and every error, is `make soak`.
"""

from __future__ import annotations

import json

import pytest

from fastfgssl.runtime.errors import STORAGE_EXIT_CODE
from helpers.faults import Fault
from helpers.runs import losses


def test_a_run_killed_at_each_call_of_a_checkpoints_writing_goes_on_bit_for_bit(training):
    calls = training.calls(training.output)
    writing = [n for n, call in enumerate(calls, 1) if "step_000000002.pt" in call]
    after = range(writing[-1] + 1, writing[-1] + 4)  # the folder's own fsync, and the removal of an older one
    assert {calls[n - 1].split()[0] for n in (*writing, *after)} >= {"open", "write", "fsync", "rename", "unlink"}
    for n in (*writing, *after):
        training.clear()
        ended = training.run(Fault(training.output, n, "kill"))
        assert (ended.code, len(ended.failed)) == (-9, 1)
        training.check_left(ended)
        training.check_whole(training.run())


@pytest.mark.parametrize(
    ("action", "from_then_on"), [("EIO", True), ("ENOSPC", True), ("EROFS", False), ("short", False)]
)
def test_a_call_that_fails_is_one_line_at_most_and_the_same_command_goes_on(training, action, from_then_on):
    count = len(training.calls(training.output))
    first = 1 + len(action)  # others than with the other errors
    for n in range(first, count + 1, count // 3):
        training.clear()
        ended = training.run(Fault(training.output, n, action, from_then_on))
        assert ended.failed
        training.check_left(ended)
        training.check_whole(training.run())


@pytest.mark.parametrize("error", ["EIO", "ESTALE"])
def test_an_error_that_passes_ends_no_run(training, archive_path, error):
    calls = training.calls(training.checkpoints)
    saving = next(n for n, call in enumerate(calls, 1) if call.startswith("fsync") and "step_000000002.pt" in call)
    ended = training.run(Fault(training.checkpoints, saving, error))
    training.check_whole(ended)
    assert ended.printed.count("; tried again in") == 1
    for n in (1, 2, 3):
        training.clear()
        ended = training.run(Fault(archive_path / "shards", n, error))
        assert ended.failed
        training.check_whole(ended)
        assert f"cannot read {archive_path / 'shards'}" in ended.printed


def test_a_shard_that_cannot_be_read_for_good_is_one_line(training, archive_path):
    training.clear()
    ended = training.run(Fault(archive_path / "shards", 3, "EIO", from_then_on=True))
    assert ended.code == STORAGE_EXIT_CODE
    assert ": 84 of the 84 images are damaged or cannot be read (100 %, above" in ended.errors[0]
    assert f": for now: cannot read {archive_path / 'shards'}" in ended.errors[0]
    training.check_left(ended)
    training.check_whole(training.run())


def test_what_a_full_disk_does_not_take_is_saved_in_the_fallback(training, tmp_path):
    training.clear()
    calls = training.calls(training.checkpoints)
    full = next(n for n, call in enumerate(calls, 1) if "step_000000002.pt" in call)
    fallback = f"output_fallback={tmp_path / 'elsewhere'}"
    ended = training.run(Fault(training.checkpoints, full, "ENOSPC", from_then_on=True), fallback)
    assert ended.code == 0
    (place,) = (tmp_path / "elsewhere").iterdir()
    assert [file.name for file in place.iterdir()] == ["step_000000002.pt", "step_000000003.pt"]
    assert ended.printed.count(f"saved as {place}") == 2
    ended = training.run(Fault(training.output), fallback, "train.steps=4")
    assert ended.code == 0
    assert "from step 3 on" in ended.printed
    assert list((tmp_path / "elsewhere").iterdir()) == []  # the output folder has a later one


def test_a_run_whose_disk_is_full_goes_on_with_its_fallback(training, tmp_path):
    training.clear()
    calls = training.calls(training.output)
    full = next(n for n, call in enumerate(calls, 1) if call.startswith("write") and "metrics.jsonl" in call) + 1
    overrides = (f"output_fallback={tmp_path / 'elsewhere'}", "train.write_patience=300")
    ended = training.run(Fault(training.output, full, "ENOSPC", from_then_on=True), *overrides)
    assert ended.code == 0, ended.printed
    training.check_left(ended)
    (place,) = (tmp_path / "elsewhere").iterdir()
    kept = ["metrics.jsonl", "step_000000001.pt", "step_000000003.pt"]
    assert sorted(file.name for file in place.iterdir()) == kept
    assert [json.loads(line)["step"] for line in (place / "metrics.jsonl").read_text().splitlines()] == [2, 3]
    ended = training.run(Fault(training.output), *overrides, "train.steps=4")
    assert ended.code == 0, ended.printed
    assert [record["step"] for record in losses(training.output)] == [1, 2, 3, 4]
    assert losses(training.output)[:3] == training.losses
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_waits_for_a_disk(training):
    training.clear()
    calls = training.calls(training.output)
    for name in ("step_000000002.pt", "metrics.jsonl", "events.out"):
        n = [n for n, call in enumerate(calls, 1) if call.startswith("write") and name in call][-1]
        training.clear()
        ended = training.run(Fault(training.output, n, "ENOSPC"), "train.write_patience=20")
        assert ended.failed
        training.check_whole(ended)
        assert ended.printed.count("training pauses, and this is tried again for 20 s") == 1
        assert ended.printed.count("training goes on after a pause") == 1


def test_a_record_that_cannot_be_written_ends_no_run(training):
    calls = training.calls(training.output)
    n = next(n for n, call in enumerate(calls, 1) if "provenance.json" in call and n > len(calls) / 2)
    ended = training.run(Fault(training.output, n, "EROFS"))
    assert ended.failed
    training.check_whole(ended)


@pytest.mark.parametrize(("action", "from_then_on", "part"), [("kill", False, 2), ("ENOSPC", True, 1)])
def test_the_best_weights_are_whole_and_found_again(finetuning, action, from_then_on, part):
    calls = finetuning.calls(finetuning.output)
    writing = [n for n, call in enumerate(calls, 1) if "/best.pt" in call]
    for n in writing[part :: len(writing) // 2]:
        finetuning.clear()
        ended = finetuning.run(Fault(finetuning.output, n, action, from_then_on))
        assert ended.failed
        finetuning.check_left(ended)
        finetuning.check_whole(finetuning.run())
