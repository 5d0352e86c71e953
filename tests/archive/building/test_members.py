"""Members beside the images: other people's readers find labels, ours reads what it did, and nothing more is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from nvidia.dali import fn, pipeline_def
from PIL import Image
from wds2idx import IndexCreator

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.verification import verify
from helpers.dicom import dicom
from helpers.images import encode, fixed_key, gradient, names_of, write_files
from helpers.loader import loader, tensors

ALLOWED = {"id", "label", "group", "split", "bit_depth", "low", "high", "modality", "body_part", "manufacturer",
           "spacing_row", "spacing_column", "stored_bits"}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """JPEG, PNG and DICOM, of which every fifth has no label; what would tell who it is, is in names and headers."""
    files = {f"Roe {i:02d}.png": encode(gradient(40 + i, 50), "PNG") for i in range(20)}
    files |= {f"Roe {i:02d}.jpg": encode(gradient(40 + i, 60), "JPEG", comment=b"Roe") for i in range(20, 40)}
    scan = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    header = {"PatientName": "Roe^Jane", "PatientID": "MRN-4471193", "PixelSpacing": [0.35, 0.35], "BitsStored": 12,
              "HighBit": 11, "Manufacturer": "SIEMENS of Dr Roe", "StudyDescription": "Roe"}  # fmt: skip
    files["Roe 40.dcm"] = dicom(scan, **header)
    folder = write_files(tmp_path_factory.mktemp("members"), {f"data/{name}": data for name, data in files.items()})
    rows = [
        f"{name},{['mole', 'scar', 'Ödem'][i % 3] if i % 5 else ''},patient {i // 4}" for i, name in enumerate(files)
    ]
    (folder / "labels.csv").write_text("\n".join(["image,label,patient", *rows]))
    return folder


def make(source: Path, out: Path, **options: object) -> PrepareOptions:
    asked = PrepareOptions(
        sources=[source / "data"],
        out=out,
        key=fixed_key(out.parent / "key"),
        **{"labels": source / "labels.csv", "shard_size": 0.005, "workers": 1, "split": "0.8/0.2"} | options,
    )
    prepare(asked)
    assert verify(Archive.open(out)) == []
    return asked


@pytest.fixture(scope="module", params=[None, "cls", "json"])
def members(request) -> str | None:
    return request.param


@pytest.fixture(scope="module")
def made(source, members, tmp_path_factory) -> PrepareOptions:
    return make(source, tmp_path_factory.mktemp(f"made_{members}") / "archive", members=members)


@pytest.fixture(scope="module")
def archive(made) -> Archive:
    return Archive.open(made.out)


def shards(archive: Archive) -> list[Path]:
    found = [archive.shard_path(shard) for shard in range(len(archive.shard_sizes))]
    assert len(found) > 2
    return found


def images_of(archive: Archive) -> list[bytes]:
    """By our table."""
    rows = archive.columns(np.arange(archive.num_samples), ("shard", "offset", "size"))
    places = zip(*(rows[name].tolist() for name in ("shard", "offset", "size")), strict=True)
    return [archive.shard_path(shard).read_bytes()[offset:][:size] for shard, offset, size in places]


def test_the_index_is_that_of_dalis_own_tool(archive, tmp_path):
    for shard in shards(archive):
        with IndexCreator(str(shard), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "idx").read_text() == shard.with_suffix(".idx").read_text()


def test_dalis_reader_gives_images_and_members(archive, members):
    @pipeline_def(batch_size=archive.num_samples, num_threads=1, device_id=None)
    def read():
        paths = shards(archive)
        read = fn.readers.webdataset(
            paths=list(map(str, paths)),
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["jpg;png", *([members] if members else [])],
            missing_component_behavior="empty",
        )
        return tuple(read) if members else read

    pipeline = read()
    pipeline.build()
    images, *beside = [[np.asarray(sample).tobytes() for sample in output] for output in pipeline.run()]
    assert images == images_of(archive)
    labels = archive.columns(np.arange(archive.num_samples), ("label",))["label"].tolist()
    if members == "cls":
        assert beside == [[b"" if label < 0 else b"%d" % label for label in labels]]
    elif members == "json":
        named = [archive.classes[label] if label >= 0 else None for label in labels]
        assert [json.loads(data).get("label") for data in beside[0]] == named


@pytest.mark.parametrize("members", ["cls"], indirect=True)
def test_webdatasets_reader_gives_pixels_and_classes(archive):
    dataset = wds.WebDataset(list(map(str, shards(archive))), shardshuffle=False)
    chosen = dataset.select(lambda sample: "cls" in sample).decode("pil").to_tuple("png;jpg", "cls")
    labels = archive.columns(np.arange(archive.num_samples), ("label",))["label"]
    expected = [(data, label) for data, label in zip(images_of(archive), labels.tolist(), strict=True) if label >= 0]
    found = list(chosen)
    assert len(found) == len(expected) == int((labels >= 0).sum())
    for (image, label), (data, number) in zip(found, expected, strict=True):
        assert label == number
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("members", ["json"], indirect=True)
def test_json_holds_what_the_table_does_and_no_more(archive, source):
    names = ("id", "label", "group", "split", "bit_depth", "low", "high", "modality", "manufacturer", "stored_bits")
    rows = archive.columns(np.arange(archive.num_samples), names)
    dataset = wds.WebDataset(list(map(str, shards(archive))), shardshuffle=False).decode().to_tuple("__key__", "json")
    found = list(dataset)
    assert [int(key) for key, _ in found] == list(range(archive.num_samples))
    for at, (_, known) in enumerate(found):
        assert known.keys() <= ALLOWED
        label = rows["label"][at]
        assert known.get("label") == (archive.classes[label] if label >= 0 else None)
        for name in set(names) - {"label", "stored_bits"}:
            assert known.get(name) == rows[name][at]
    of_dicom = {
        "modality": "MR",
        "manufacturer": "Siemens",
        "spacing_row": 0.35,
        "spacing_column": 0.35,
        "stored_bits": 12,
    }
    assert found[-1][1].items() >= of_dicom.items()
    assert {"Ödem"} < {known.get("label") for _, known in found}


def test_nobody_is_named(archive):
    stored = b"".join(path.read_bytes() for path in archive.path.rglob("*") if path.is_file())
    for name in ("Roe", "MRN-4471193", "patient 3"):
        assert not any(name.encode(coding) in stored for coding in ("utf-8", "utf-16-le", "utf-16-be"))


def test_training_sees_the_same_batches(archive, source, tmp_path):
    plain = Archive.open(make(source, tmp_path / "archive").out)
    for one, other in zip(loader(plain, stop=4), loader(archive, stop=4), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        for tensor, same in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(tensor, same)


def test_without_members_shards_hold_images_alone(source, tmp_path):
    archive = Archive.open(make(source, tmp_path / "archive").out)
    names = []
    for shard in shards(archive):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
    assert {name.partition(".")[2] for name in names} == {"jpg", "png"}
    assert len(names) == archive.num_samples


@pytest.mark.parametrize("members", ["cls", "json"], indirect=True)
def test_workers_that_write_shards_and_what_is_added(source, members, tmp_path, monkeypatch):
    """A class that sorts before the others is new: what old shards say of theirs must stay true."""
    monkeypatch.setattr("fastfgssl.archive.building.tasks._FEW_BYTES", 0)
    data = write_files(tmp_path / "data", {f"{i}.png": encode(gradient(40 + i, 50), "PNG") for i in range(4)})
    (tmp_path / "labels.csv").write_text("image,label\n0,m\n1,n\n2,m\n3,n\n")
    make(tmp_path, tmp_path / "archive", members=members)
    (tmp_path / "labels.csv").write_text("image,label\n0,m\n1,n\n2,m\n3,n\n4,a\n5,m\n")
    write_files(data, {f"{i}.png": encode(gradient(40 + i, 50), "PNG") for i in range(4, 6)})
    made = make(tmp_path, tmp_path / "archive", members=members)
    archive, names = Archive.open(made.out), names_of(made)
    rows = archive.columns(np.arange(6), ("id", "label"))
    by_name = {
        Path(names[id]).stem: archive.classes[label] for id, label in zip(rows["id"], rows["label"], strict=True)
    }
    assert by_name == {"0": "m", "1": "n", "2": "m", "3": "n", "4": "a", "5": "m"}
    urls = [str(archive.shard_path(shard)) for shard in range(len(archive.shard_sizes))]
    told = [value for (value,) in wds.WebDataset(urls, shardshuffle=False).decode().to_tuple(members)]
    said = [archive.classes[value] if members == "cls" else value["label"] for value in told]
    assert said == [by_name[str(i)] for i in range(6)]
    assert archive.classes == (("m", "n", "a") if members == "cls" else ("a", "m", "n"))
