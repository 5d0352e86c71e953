"""What a DICOMweb server is asked, what it may answer, and who it is told that we are."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator

import pydicom
import pytest

from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.opening import open_sources
from fastfgssl.runtime.errors import UserError
from helpers.containers import contents_of
from helpers.dicom import wheel_file

pytest.importorskip("requests")
from helpers.dicomweb import PASSWORD, USER, Proxy, orthanc, proxy

FILES = [
    wheel_file(f"{name}.dcm").read_bytes()
    for name in ("CT_small", "MR_small_RLE", "JPEG2000", "SC_rgb_jpeg_dcmtk", "SC_rgb_small_odd", "reportsi")
]


def name_of(data: bytes) -> str:
    header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    return f"{header.StudyInstanceUID}/{header.SeriesInstanceUID}/{header.SOPInstanceUID}.dcm"


BY_NAME = {name_of(data): data for data in FILES}
CT, MR, NM, REPORT = (name_of(FILES[number]) for number in (0, 1, 2, 5))
CONTENTS = dict(sorted(BY_NAME.items(), key=lambda item: item[0].encode())) | {
    REPORT: "skipped: DICOM: Basic Text SR Storage"
}


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), FILES) as port:
        yield port


@pytest.fixture
def server(port, monkeypatch, tmp_path) -> Iterator[Proxy]:
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("fastfgssl.archive.sources.dicomweb_client.SILENCE", 0.4)
    monkeypatch.setattr("fastfgssl.runtime.patience.PAUSES", (0.01, 0.02, 0.03))
    with proxy(port) as server:
        yield server


def contents(url: str, **options: int) -> dict[str, bytes | str]:
    (source,) = open_sources([url], options=SourceOptions(depth=3, **options))
    return contents_of(source)


def test_bytes_are_as_they_are_stored_in_the_order_of_a_folder(server, monkeypatch):
    found = contents(server.url)
    assert found == CONTENTS
    assert list(found) == list(CONTENTS)
    assert not any("/instances/" in path and REPORT.rpartition("/")[2][:-4] in path for path in server.asked)
    monkeypatch.setattr("fastfgssl.archive.sources.dicomweb._PAGE", 2)  # of seven
    assert contents(server.url) == CONTENTS


def test_only_a_part(server):
    study, series, _ = CT.split("/")
    for url in (f"/studies/{study}", f"/studies/{study}/series/{series}", "?ModalitiesInStudy=CT", "?Modality=CT"):
        assert contents(server.url + url) == {CT: BY_NAME[CT]}, url
    assert contents(f"{server.url}?PatientName=Nobody*") == {}
    (source,) = open_sources([f"{server.url}/studies/{study}?Modality=CT"])
    assert (source.name, source.where(CT.encode())) == (
        "dicom-web",
        f"http://127.0.0.1:{server.server_port}/dicom-web/studies/{study}/series/{series}/instances/{CT.split('/')[2][:-4]}",
    )


FAULTS = ["500", "hangs", "answers nothing", "cuts", "cuts and does not tell", "is malformed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_for_a_while(server, fault):
    server.fail(fault, "limit", times=2)
    (source,) = open_sources([server.url])
    entries = [entry for entry in source.entries() if not entry.skip]
    assert server.times == 0
    server.fail(fault, "/instances/", times=1)
    first = list(source.read(entries))
    failed = [number for number, data in enumerate(first) if isinstance(data, OSError)]
    assert len(failed) == 1  # which a worker asks for again
    assert PASSWORD not in str(first[failed[0]])
    again = pickle.loads(pickle.dumps(source))  # as it comes to a worker
    assert list(again.read([entries[number] for number in failed])) == [
        BY_NAME[entries[number].name.decode()] for number in failed
    ]


def test_a_server_that_is_silent_is_not_asked_for_ever(server):
    (source,) = open_sources([server.url])
    entries = [entry for entry in source.entries() if not entry.skip] * 20
    server.fail("answers nothing", "/instances/")
    server.asked = []
    assert all(isinstance(data, OSError) for data in source.read(entries))
    assert len(server.asked) < 30 < len(entries)


def test_a_study_that_cannot_be_listed_costs_no_other(server):
    study = NM.split("/")[0]
    server.fail("500", f"/studies/{study}/series")
    (source,) = open_sources([server.url])
    entries = list(source.entries())
    lost = next(entry for entry in entries if entry.name == study.encode())
    assert len(entries) == len(BY_NAME)
    (why,) = source.read([lost])
    assert isinstance(why, OSError)
    assert why.strerror == "what is in it could not be listed"


def test_what_it_answers_may_be_wrong(server):
    study, series, instance = CT.split("/")
    at = f"/dicom-web/studies/{study}/series"
    item = {"0020000E": {"vr": "UI", "Value": [series]}, "00201209": {"vr": "IS", "Value": [3]}}
    server.canned = {at: [item]}
    assert contents(f"{server.url}/studies/{study}") == {
        f"{study}/{series}": "quarantined: incomplete listing: the server tells of 3 and lists 1",
        CT: BY_NAME[CT],
    }
    for wrong, why in (
        ([{"0020000E": {"Value": ["../../x"]}}], "lists something without a UID"),
        ([item | {"0020000E": {"Value": [f"1.{i}"]}} for i in range(500)], "the same page again"),
        ([[[]]], "no DICOM JSON"),
        ({"error": 1}, "no DICOM JSON"),
    ):
        server.canned = {at: wrong}
        with pytest.raises(UserError, match=why):
            contents(f"{server.url}/studies/{study}")
    server.canned = {f"{at}/{series}/instances": [{"00080018": {"Value": [instance[:-4]]}}], at: [item]}
    item["00201209"], item["00080060"] = {}, {"Value": ["SR"]}  # no class is told: the modality says it
    assert contents(f"{server.url}/studies/{study}") == {CT: "skipped: DICOM: modality SR"}


def test_more_than_is_taken(server):
    study = CT.split("/")[0]
    assert (
        contents(f"{server.url}/studies/{study}", max_bytes=39000)[CT]
        == "Unusable: too large: 39206 bytes, --max-bytes is 39000"
    )


def test_who_asks(server, monkeypatch, tmp_path):
    url = f"{server.url}/studies/{CT.split('/')[0]}"
    monkeypatch.delenv("DICOMWEB_USER")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert contents(url) == {CT: BY_NAME[CT]}
    basic = server.authorization
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc\n")
    with pytest.raises(UserError, match="401 Unauthorized: set DICOMWEB_USER and"):  # Orthanc knows no tokens
        contents(url)
    assert server.authorization == "Bearer abc"
    assert contents(url.replace("://", f"://{USER}:{PASSWORD}@")) == {CT: BY_NAME[CT]}
    assert server.authorization == basic


WRONG = {
    "dicomweb+http://{host}/nowhere": "/nowhere/studies: it answers 404 Not Found: is http.* the root of a DICOMweb",
    "dicomweb+http://127.0.0.1:9/x": "cannot list http://127.0.0.1:9/x/studies: Connection refused$",
    "dicomweb+http://nothing.invalid/x": r"cannot list http://nothing.invalid/x/studies: \w+",
    "dicomweb+https://{host}/dicom-web": "dicom-web/studies: TLS: WRONG_VERSION_NUMBER",
    "dicomweb://{host}/dicom-web": r"protocol of dicomweb://\S+ = 'dicomweb': must be one of dicomweb\+http, dicom",
    "dicomweb+http:///dicom-web": "is no URL of a DICOMweb service",
    "dicomweb+http://{host}:x/dicom-web": "is no URL of a DICOMweb service",
    "dicomweb+http://{host}/d/studies/1/series/2/instances/3": "is no URL of a DICOMweb service",
    "dicomweb+http://{host}/dicom-web?limit=3": "limit, offset, includefield are set by this program",
}


@pytest.mark.parametrize("url", WRONG)
def test_urls_that_lead_nowhere(server, url):
    asked = url.format(host=f"127.0.0.1:{server.server_port}")
    for secret in ("", f"{USER}:{PASSWORD}@"):
        with pytest.raises(UserError, match=WRONG[url]) as told:
            contents(asked.replace("://", f"://{secret}") + ("" if "?" in url else "?PatientName=Zwiebelfisch"))
        assert PASSWORD not in str(told.value)
        assert "Zwiebelfisch" not in str(told.value)


def test_answers_of_other_services_and_to_strangers(server):
    for fault, why in (("is a portal", "answers text/html and not DICOM JSON"), ("403", "it answers 403 Forbidden$")):
        server.fail(fault, "")
        with pytest.raises(UserError, match=why):
            contents(server.url)
    server.fail("is a portal", "/instances/")
    (source,) = open_sources([f"{server.url}/studies/{CT.split('/')[0]}"])
    server.times = 0
    entries = list(source.entries())
    server.fail("is a portal", "/instances/")
    (why,) = source.read(entries)
    assert why.strerror == "it answers text/html where an instance should be"
