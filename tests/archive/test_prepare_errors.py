"""Bad input is one clear line, and leaves nothing behind."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.runtime.errors import UserError
from helpers.further import further
from helpers.images import encode, fixed_key, gradient, write_files
from helpers.paths import TOOLS

TOOL = TOOLS / "prepare.py"

# Each runs in a folder with: images/1.png, labels.csv, archive (an archive), folder (something else), texts/1.txt
BAD_COMMANDS = {
    "images": "--out is missing",
    "--out new": "give at least one source",
    "images --out new --bogus": "unrecognized arguments: --bogus",
    "images --out new --short-side x": "argument --short-side: invalid int value: 'x'",
    "images --out new --short-side 0": "short-side must be above 0, not 0",
    "images --out new --workers -1": "workers must be above 0, not -1",
    "images --out new --shard-size nan": "shard-size = nan: must be a number",
    "nowhere --out new": "the source nowhere does not exist",
    "texts --out new": "no images below texts, only 1 x .txt",
    "images --out folder": "folder holds other files and no archive: choose an empty folder or a new one",
    "images --out archive --short-side 9": "archive was made without --short-side: add to it in the same way",
    "images --out new --min-side -1": "min-side must be 0, for no limit, or above, not -1",
    "images --out new --min-contrast nan": "min-contrast = nan: must be a number",
    "images --out new --max-aspect 0.5": "max-aspect is the long side by the short one, so it must be 0",
    "images --out new --modality CT,DXX": "modality 'DXX' is none of DICOM's, such as CT, MG or DX; did you mean 'DX'?",
    "images --out new --modality ,": "modality must be codes of DICOM such as MG,DX, not ','",
    "images --out new --leave-out localiser": "must be one of derived, localizer, secondary, none; did you mean 'loc",
    "images --out new --leave-out none,derived": "leave-out must be kinds of images or none, not 'none,derived'",
    "images --out archive --min-side 9": "archive was made with --min-side 16: add to it in the same way",
    "images --out archive --depth 16": "archive was made with --depth 8: add to it in the same way",
    "images --out archive": "key is not there, and nothing can be added to an archive without its own",
    "images --out new --key labels.csv": "labels.csv is no key: it must hold 64 hexadecimal digits",
    "images --out new --key new/key": "the key new/key must not lie in the archive",
    "images --out new --key new.partial/key": "the key new.partial/key must not lie in",
    "images --out new --shard-size 1e308": "shard-size is in MiB: 2^42 of them are enough, not 1e+308",
    "images --out new --max-memory 1e200": "max-memory is in MiB: 2^42 of them are enough, not 1e+200",
    f"images --out new --frames every:{'9' * 5000}": "999' is not middle, all or every:N",
    "images --out new --split 0.8/0.3": "the shares of train and test must sum to 1, and sum to 1.1: 0.7273/0.2727",
    "images --out new --split half": "split must be shares of train, val and test such as 0.8/0.1/0.1, or of train and",
    "images --out new --split 0.8/0.2 --by patient": "argument --by: invalid choice: 'patient'",
    "images --out new --by image": "--by says how --split divides the images: give --split too",
    "images --out new --seed 3": "--seed says how --split divides the images: give --split too",
    "images --out new --split 0.8/0.2 --labels splits.csv": "splits.csv has a column split (fit), and --split would",
    "images --out archive --split 0.8/0.2": "archive was made without --split: add to it in the same way",
    "images --out new --members csv": "argument --members: invalid choice: 'csv'",
    "images --out new --members cls": "--members cls writes each image's class: give --labels, --labels-preset or --",
    "images --out archive --members json": "archive was made without --members: add to it in the same way",
    "images --out new --part 3/2": "part must be I/N, with I from 1 to N, not '3/2'",
    "images --out new --max-unreadable 2": "max-unreadable must be between 0 and 1, not 2.0",
    "images --out archive --overwrite --retry": "give one of them",
    "images --out labels.csv": "labels.csv is a file: choose another --out",
    "images --out folder --overwrite": "is not an archive: it has no manifest.json",
    "images --out labels.csv/x": "cannot write",
    "images --out /proc/new": "cannot write /proc/new.partial",
    "images --out images/new": "must not contain each other",
    "images/1.png --out .": "must not contain each other",
    "images --out new --labels none.csv": "cannot read the labels none.csv: No such file",
    "images --out new --labels images": "cannot read the labels images: Is a directory",
    "images --out new --labels images/1.png": "images/1.png is not a CSV file in UTF-8",
    "images --out new --labels labels.csv": "labels.csv: no row matches an image, e.g. line 2, 'x.png'",
    "images --out new --labels labels.csv --group-column g": "has no column 'g', only: image, label",
    "images --out new --group-column g": "group-column names a column of the labels: give --labels too",
    "images --out new --image-column i": "image-column names a column of the labels: give --labels too",
    "images --out new --label-column a,b": "label-column names a column of the labels: give --labels too",
    "images --out new --labels labels.csv --label-column ,": "must be a column of labels.csv, or one for each class",
    "images --out s3://bucket/archive": "out = 's3:/bucket/archive': must be a path on this machine, not a URL",
    "images --out new --key s3://bucket/key": "key = 's3:/bucket/key': must be a path on this machine, not a URL",
    "images --out new --max-bytes 8x9": "max-bytes = '8x9': must be an integer",
    "images --out new --labels-preset isic2018": "download ISIC2018_Task3_Training_GroundTruth.zip, ISIC2018_Task3",
    "images --out new --labels-preset isic2019": "argument --labels-preset: invalid choice: 'isic2019'",
    "images --out new --labels-from folders": "1 of the images lie in no folder of a class",
    "images --out new --labels-from folders --labels l.csv": "--labels and --labels-from each say what images show",
    "--verify folder": "folder is not an archive",
    "--verify folder SOURCE": "--verify checks an archive and makes none: leave out SOURCE",
    "--verify folder --short-side 5": "--verify checks an archive and makes none: leave out --short-side",
    "--verify folder --nested 0": "--verify checks an archive and makes none: leave out --nested",
    "--verify nowhere": "nowhere is not an archive",
}


# of a folder that nobody may enter: `closed`
FORBIDDEN = {
    "closed/source --out new": "cannot read the source closed/source: Permission denied",
    "closed/1.png --out new": "cannot read the source closed/1.png: Permission denied",
    "--list closed/list --out new": "cannot read the list closed/list: Permission denied",
    "images --out closed/new": "cannot write closed/new: Permission denied",
    "images --out new --key closed/key": "cannot read the key closed/key: Permission denied",
    "images --out new --key readonly/key": "cannot write {}/readonly/new.inputs.csv: Permission denied",
    "images closed --out new": "cannot read the folder {}/closed/: Permission denied",
}


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory) -> Path:
    files = {"images/1.png": encode(gradient(), "PNG"), "labels.csv": b"image,label\nx.png,a\n", "texts/1.txt": b""}
    files |= {"splits.csv": b"image,label,split\n1.png,a,fit\n"}
    folder = write_files(tmp_path_factory.mktemp("bad"), files | {"folder/precious": b"mine"})
    key = fixed_key(tmp_path_factory.mktemp("key") / "key")
    prepare(PrepareOptions(sources=[folder / "images"], out=folder / "archive", key=key, workers=1))
    return folder


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_bad_input_is_one_clear_line(bad_folder, command, monkeypatch, capfd):
    before = sorted(bad_folder.rglob("*"))
    monkeypatch.chdir(bad_folder)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *command.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    output, errors = capfd.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert BAD_COMMANDS[command] in errors
    assert sorted(bad_folder.rglob("*")) == before


def test_bad_input_in_a_process_of_its_own(bad_folder):
    command = [sys.executable, str(TOOL), "nowhere", "--out", "new"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=bad_folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: the source nowhere does not exist\n"


@pytest.mark.parametrize("command", [*list(FORBIDDEN)[::2], *further(*list(FORBIDDEN)[1::2])])
def test_what_the_system_forbids_is_told_before_the_work(tmp_path, command):
    """But for a folder that is the system's own, as at the root of a disk."""
    files = {"images/1.png": encode(gradient(), "PNG"), "images/disk/lost+found/1": b"", "closed/1.png": b""}
    write_files(tmp_path, files)
    fixed_key(tmp_path / "readonly/key")
    closed = tmp_path / "closed", tmp_path / "images/disk/lost+found"
    for folder in closed:
        folder.chmod(0)
    (tmp_path / "readonly").chmod(0o500)
    without_privileges = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    tool = [*without_privileges, sys.executable, TOOL, *command.split()]
    try:
        ended = subprocess.run(list(map(str, tool)), cwd=tmp_path, capture_output=True, text=True)
    finally:
        for folder in closed:
            folder.chmod(0o700)
    message = FORBIDDEN[command].format(tmp_path.resolve())
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {message}\n")


def test_options_made_in_python_have_their_types_or_name_the_option(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = PrepareOptions(
        sources=["~/a", tmp_path / "b", "s3://bucket/c"],
        lists=["~/list"],
        out="~/archive",
        labels="~/labels.csv",
        key="~/key",
        workers=np.int64(2),
        shard_size=np.float32(1),
        short_side=64.0,
    )
    assert options.sources == (tmp_path / "a", tmp_path / "b", "s3://bucket/c")
    assert (options.out, options.labels, options.key) == tuple(tmp_path / n for n in ("archive", "labels.csv", "key"))
    assert options.lists == (tmp_path / "list",)
    assert [type(value) for value in (options.workers, options.shard_size, options.short_side)] == [int, float, int]
    for wrong, message in {
        "sources": ("folder", r"^sources = 'folder': must be a list, as \['folder'\]"),
        "out": (3, "^out = 3: must be a path"),
        "key": (b"key", "^key = b'key': must be a path"),
        "workers": ("two", "^workers = 'two': must be an integer"),
        "max_ratio": (None, "^max-ratio = None: must be a number"),
        "overwrite": (1, "^overwrite = 1: must be true or false"),
        "duplicates": ("dorp", "^duplicates = 'dorp': must be one of drop, keep; did you mean 'drop'"),
        "depth": ([8], r"^depth = \[8\]: must be an integer"),
    }.items():
        with pytest.raises(UserError, match=message[1]):
            PrepareOptions(**{"sources": ["a"], "out": "archive", wrong: message[0]})
