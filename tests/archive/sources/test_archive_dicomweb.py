"""Archives from a DICOMweb server: those of a folder of the same files, through outages and kills."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.command import Command
from helpers.dicom import dicom, wheel_file
from helpers.images import fixed_key, inputs_of, write_files
from helpers.paths import TOOLS

pytest.importorskip("requests")
from helpers.dicomweb import PASSWORD, USER, Proxy, orthanc, proxy

WHEEL = """CT_small MR_small_RLE JPEG2000 JPEG-lossy examples_ybr_color ExplVR_BigEnd image_dfl SC_rgb_jpeg_dcmtk
SC_rgb_small_odd SC_rgb_gdcm_KY liver_1frame reportsi rtplan"""
SLICES = 300


def slices() -> Iterator[bytes]:
    """Two patients' series of small slices, each another picture."""
    rng = np.random.default_rng(7)
    for number in range(SLICES):
        study = f"1.2.826.7.{number % 2}"
        yield dicom(
            rng.integers(0, 4096, (16, 16)).astype(np.uint16),
            Modality="CT",
            PatientID=f"PATIENT-{number % 2}",
            PatientName="Zwiebelfisch^Anna",
            StudyInstanceUID=study,
            SeriesInstanceUID=f"{study}.{number % 3}",
            SOPInstanceUID=f"{study}.{number % 3}.{number}",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
        )


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """By the names that they have in a source."""
    found = {}
    for data in (*(wheel_file(f"{name}.dcm").read_bytes() for name in WHEEL.split()), *slices()):
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        found[f"{header.StudyInstanceUID}/{header.SeriesInstanceUID}/{header.SOPInstanceUID}.dcm"] = data
    return found


@pytest.fixture(scope="module")
def server(files, tmp_path_factory) -> Iterator[Proxy]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), list(files.values())) as port, proxy(port) as server:
        yield server


@pytest.fixture(autouse=True)
def healthy(request, monkeypatch) -> None:
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", PASSWORD)
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        server.times, server.delay, server.canned, server.asked = 0, 0.0, {}, []


def options(source: Path | str, out: Path, **others: object) -> PrepareOptions:
    key = fixed_key(out.parent / "key")
    return PrepareOptions(sources=[source], out=out, key=key, **{"workers": 2, "shard_size": 0.1} | others)


def pictures(archive: Path) -> dict[str, bytes]:
    paths = [*archive.glob("shards/*"), archive / "samples.arrow"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    """The archive of a folder of the same files."""
    folder = write_files(tmp_path_factory.mktemp("scans") / "dicom-web", files)
    out = tmp_path_factory.mktemp("local") / "archive"
    prepare(options(folder, out))
    return out


def test_the_archive_is_that_of_a_folder_and_a_killed_run_goes_on(server, files, whole, tmp_path, capfd):
    out = tmp_path / "archive"
    url = server.url.replace("://", f"://{USER}:{PASSWORD}@")
    server.delay = 0.01
    words = ("--out", out, "--key", fixed_key(tmp_path / "key"), "--workers", 2, "--shard-size", 0.1)
    run = Command(TOOLS / "prepare.py", url, *words)
    try:
        while len(done := list(out.parent.glob("*.partial/parts/*/rows.arrow"))) < 1:
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.kill()
    assert not out.exists()
    parts = [path.parent.name for path in done if not path.parent.name.startswith(".")]
    server.asked, server.delay = [], 0.0

    summary = prepare(options(url, out))
    assert len(server.asked) == len(set(server.asked))  # nor does a worker list again
    instances = [path for path in server.asked if "limit" not in path]
    assert len(instances) < len(files) - 2 or not parts  # a report and a plan hold no pixels, and are not asked for
    assert pictures(out) == pictures(whole)
    assert verify(Archive.open(out)) == []
    rows = inputs_of(options(url, out))
    assert {row["path"] for row in rows} == {
        f"{server.url.removeprefix('dicomweb+')}/studies/{{}}/series/{{}}/instances/{{}}".format(
            *name.removesuffix(".dcm").split("/")
        )
        for name in files
    }
    local = read_accounting(whole).to_pylist()
    kinds = [(row["id"], row["outcome"], row["sample"]) for row in local]
    assert [(row["id"], row["outcome"], row["sample"]) for row in read_accounting(out).to_pylist()] == kinds
    skipped = {row["reason"] for row in rows if row["outcome"] == "skipped"}
    assert skipped == {"DICOM: Basic Text SR Storage", "DICOM: RT Plan Storage"}
    assert summary.samples == Archive.open(whole).num_samples

    shown = "".join(capfd.readouterr())
    private = (out.parent / "archive.inputs.csv").read_text()
    secrets = [PASSWORD, "Zwiebelfisch", "PATIENT-1"]
    names = {part for name in files for part in name.removesuffix(".dcm").split("/")}
    assert not [secret for secret in secrets if secret in shown + private]
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not [name for name in (*secrets, *names) if name.encode() in everything]

    server.asked = []
    assert prepare(options(f"{server.url}?Modality=CT", out)).added == 0  # under the same ids, however it was narrowed
    assert not [path for path in server.asked if "limit" not in path]


def test_an_outage_replaces_nothing_and_what_is_done_is_kept(server, whole, tmp_path):
    out = tmp_path / "archive"
    shutil.copytree(whole, out)
    before = pictures(out)
    server.fail("500", r"/series/1\.2\.826\.7\.1.*/instances/")
    with pytest.raises(
        UserError, match=r"files cannot be read, http://127.*/instances/.*the same command goes on"
    ) as told:
        prepare(options(f"{server.url}?Modality=CT", out, overwrite=True))
    assert PASSWORD not in str(told.value)
    assert pictures(out) == before
    server.times, server.asked = 0, []
    assert prepare(options(f"{server.url}?Modality=CT", out, overwrite=True)).samples >= SLICES
    assert 0 < len([path for path in server.asked if "limit" not in path]) < SLICES
