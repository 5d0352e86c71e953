"""Whole slides as tiles: of the magnification that is asked for, of tissue, each where it lies."""

from __future__ import annotations

import base64
import io
import zipfile
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.images.decoded import FileSettings, images_of
from fastfgssl.archive.images.slides import SlideSettings, Tile, slide_tiles
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.outcome import Filtered, PreparedImage, Unusable
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.dicom import dicom
from helpers.images import DECODER, encode, fixed_key, gradient, inputs_of, write_files
from helpers.ndpi import ndpi_slide
from helpers.slides import damaged, dicom_slide, slide, tissue

pytest.importorskip("openslide")
PIXELS = tissue(512, 768, [(150, 150, 100), (360, 600, 90)])


def tiles(data: bytes | list[bytes], mpp: float = 0.5, tile: int = 64) -> list[Tile | Unusable]:
    found = slide_tiles(data, SlideSettings(mpp=mpp, tile=tile))
    assert found is not None
    return list(found)


@pytest.mark.parametrize(("mpp", "scale"), [(0.5, 1), (1.0, 2), (2.0, 4), (0.75, 1.5)])
@pytest.mark.parametrize("aperio", [True, False])
def test_a_tile_shows_its_place_at_the_magnification_asked_for(mpp, scale, aperio):
    found = tiles(slide(PIXELS, mpp=0.5, aperio=aperio, dpi=not aperio), mpp, 32)
    side = round(32 * scale)
    assert len(found) == (512 // side) * (768 // side)
    kept = [tile for tile in found if isinstance(tile, Tile)]
    for tile in kept:
        assert tile.mpp == pytest.approx(mpp, rel=0.01)
        assert tile.part == f"tile {tile.x} {tile.y}"
        assert tile.level == (1 if scale == 4 else 0)  # which is a quarter of the slide
        truth = Image.fromarray(PIXELS[tile.y : tile.y + side, tile.x : tile.x + side]).resize((32, 32))
        difference = tile.pixels.astype(float).mean(axis=(0, 1)) - np.asarray(truth).astype(float).mean(axis=(0, 1))
        assert np.abs(difference).max() < 6


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_ndpi(mpp):
    scale = round(mpp / 0.5)
    found = tiles(ndpi_slide(PIXELS, mpp=0.5), mpp, 32)
    assert len(found) == (512 // (32 * scale)) * (768 // (32 * scale))
    kept = [tile for tile in found if isinstance(tile, Tile)]
    assert kept
    for tile in kept:
        assert (tile.mpp, tile.level) == (pytest.approx(mpp, rel=0.01), scale - 1)
        truth = PIXELS[tile.y : tile.y + 32 * scale : scale, tile.x : tile.x + 32 * scale : scale]
        assert np.abs(tile.pixels.astype(float).mean(axis=(0, 1)) - truth.mean(axis=(0, 1))).max() < 6


def test_what_is_tissue_is_taken_and_glass_is_not():
    for levels in (3, 1):  # in a pyramid, tissue is looked for above
        found = tiles(slide(PIXELS, mpp=0.5, levels=levels))
        stained = (PIXELS.max(axis=2).astype(int) - PIXELS.min(axis=2)) > 30
        for tile, (row, column) in zip(found, np.ndindex(8, 12), strict=True):
            share = stained[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64].mean()
            if not 0.02 < share < 0.25:  # at the edge of a stain, levels above may see it otherwise
                assert isinstance(tile, Tile if share > 0.1 else Filtered), (row, column, share)
    marked = PIXELS.copy()
    marked[:64, :64] = 3  # a border of the scan is black, with colours of a grade
    marked[:64, :64, 0] = 0
    assert str(tiles(slide(marked, mpp=0.5))[0]).startswith("background")


def test_a_damaged_tile_costs_no_other():
    sound = tiles(slide(PIXELS, mpp=0.5))
    found = tiles(damaged(slide(PIXELS, mpp=0.5), 12 + 2))
    assert len(found) == len(sound)
    bad = [tile for tile in found if isinstance(tile, Unusable) and not isinstance(tile, Filtered)]
    assert [(str(tile).partition(":")[0], tile.part) for tile in bad] == [("damaged tile", "tile 128 64")]
    for before, after in zip(sound, found, strict=True):
        if isinstance(after, Tile):
            np.testing.assert_array_equal(before.pixels, after.pixels)


REFUSED = {
    "slide without a magnification: it does not say": (None, 0.5, 64),
    "slide too coarse: 0.5 microns per pixel, --mpp is 0.25": (0.5, 0.25, 64),
    "slide too small: 768 x 512 pixels where a tile takes 1024 x 1024": (0.5, 0.5, 1024),
}


@pytest.mark.parametrize("why", REFUSED)
def test_nothing_is_guessed_and_nothing_enlarged(why):
    said, mpp, tile = REFUSED[why]
    for aperio in (True, False):  # its power of 20 is not taken for half a micron
        with pytest.raises(Unusable, match=why):
            tiles(slide(PIXELS, mpp=said, aperio=aperio, dpi=not aperio), mpp, tile)


HUGE = base64.b85decode(
    "Nl7XI2mk;85&-"
    "@H1ONd500000000011ONd5004jh000321ONd5003YBb^rna0{{a6008Cy000940{{U4000L7000I70{{U4000I6000#M0{{U4000"
    "93000^R1pom6008U&000{S1pom6008s=000~T0{{U400031001Zf0{{U400093001!o0sssE008^|002S(1ONd5002M$002V)1ON"
    "d5002M$002Y*1ONm8000O9002b+1ONm8000;P000sK0{{X5000620ss^O1po#B001Zf00000000O82mlBGK%4*o0RR91K%4*o0RR"
    "91bdh@t$8@vAOj3F0<_Oti6NmXg1W2q?%VqF&*M_uRmlR=fct~L}Gf}G*Wqmo4(QEwO8r|-%t-K<~U(%sA<>u$;!Rqq!_4fDp`2"
)
"""Found by `make fuzz`: 329 bytes that say they are a slide of nearly a million tiles, each of them empty."""


def test_a_slide_has_no_more_tiles_than_its_bytes_could_hold():
    with pytest.raises(Unusable, match=r"^slide too large: \d{6} tiles in 329 bytes$"):
        slide_tiles(HUGE, SlideSettings(mpp=0.5, tile=32))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_slides_end_in_reasons(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(slide(PIXELS[:192, :256], mpp=0.5))
    where = rng.integers(0, len(data) if seed % 2 else 400, 12)
    for place in where:
        data[place] = rng.integers(256)
    data = bytes(data[: rng.integers(len(data) // 2, len(data))] if seed % 3 == 0 else data)
    with suppress(Unusable):
        found = slide_tiles(b"II*\0" + data[4:], SlideSettings(mpp=0.5, tile=64))
        assert found is None or all(isinstance(tile, (Tile, Unusable)) for tile in found)


def test_an_archive_of_slides(tmp_path):
    plain = io.BytesIO()
    tifffile.imwrite(plain, PIXELS[:100, :100], photometric="rgb")
    files = {
        "a/1.svs": slide(PIXELS, mpp=0.5),
        "a/2.tif": slide(PIXELS[:, ::-1], mpp=0.5, aperio=False, dpi=True),
        "a/3.ndpi": ndpi_slide(PIXELS[::-1, ::-1], mpp=0.5),
        "a/damaged.svs": damaged(slide(PIXELS[::-1], mpp=0.5), 12 * 6 + 2),
        "a/unsaid.svs": slide(PIXELS, mpp=None),
        "a/no-slide.svs": b"nothing",
        "plain.tif": plain.getvalue(),
        "photo.png": encode(gradient(), "PNG"),
    }
    source, out = write_files(tmp_path / "slides", files), tmp_path / "archive"
    key = fixed_key(tmp_path / "key")
    options = PrepareOptions(sources=[source], out=out, key=key, mpp=1.0, tile=64, workers=1)
    summary = prepare(options)
    assert verify(Archive.open(out)) == []
    rows = inputs_of(options)
    per_file = {name: [row for row in rows if row["path"].endswith(f"/{name}")] for name in files}
    for name in ("a/1.svs", "a/2.tif", "a/3.ndpi", "a/damaged.svs"):
        outcomes = [row["outcome"] for row in per_file[name]]
        assert len(outcomes) == 4 * 6
        assert {"written", "filtered"} <= set(outcomes)
        assert outcomes.count("quarantined") == (name == "a/damaged.svs")
    assert per_file["a/unsaid.svs"][0]["reason"].startswith("slide without a magnification")
    assert [row["outcome"] for row in per_file["plain.tif"] + per_file["photo.png"]] == ["written", "written"]
    assert per_file["a/no-slide.svs"][0]["outcome"] == "quarantined"
    written = [row for row in read_accounting(out).to_pylist() if row["outcome"] == "written"]
    table = Archive.open(out).columns(np.arange(summary.samples), ["id", "group", "mpp", "slide_x", "slide_y"])
    assert sorted(set(table["mpp"][~np.isnan(table["mpp"])])) == [1.0]
    by_id = dict(zip(table["id"], table["group"], strict=True))
    groups = {name: {by_id[row["id"]] for row in per_file[name] if row["outcome"] == "written"} for name in files}
    assert [len(groups[name]) for name in ("a/1.svs", "a/2.tif", "a/3.ndpi", "a/damaged.svs")] == [1] * 4
    assert len(set.union(*groups.values())) == 4 + 1  # what is no slide belongs to no group: -1
    assert len(written) == summary.samples
    assert sorted(row["part"] for row in written if row["part"]) == sorted(
        f"tile {x} {y}" for x, y in zip(table["slide_x"], table["slide_y"], strict=True) if x >= 0
    )


@pytest.mark.parametrize(("mpp", "level"), [(0.5, 0), (2.0, 1)])
def test_levels_of_a_dicom_slide_are_one_slide(mpp, level):
    files = dicom_slide(PIXELS, mpp=0.5)
    found = tiles([files["level 0.dcm"], files["level 1.dcm"]], mpp, 32)
    kept = [tile for tile in found if isinstance(tile, Tile)]
    side = round(32 * mpp / 0.5)
    assert len(found) == (512 // side) * (768 // side)
    assert len(kept) > 4
    for tile in kept:
        assert (tile.level, tile.mpp) == (level, pytest.approx(mpp, rel=0.01))
        truth = PIXELS[tile.y : tile.y + side, tile.x : tile.x + side].reshape(-1, 3).mean(axis=0)
        assert np.abs(tile.pixels.reshape(-1, 3).mean(axis=0) - truth).max() < 8


def test_an_archive_of_dicom_slides(tmp_path):
    """Two in a folder, of which one names no patient, and one in another; in a container they are refused."""
    one, two = dicom_slide(PIXELS, mpp=0.5), dicom_slide(PIXELS[::-1], mpp=0.5, PatientID="", BurnedInAnnotation="NO")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as out:
        for name, data in one.items():
            out.writestr(name, data)
    files = {f"a/{name}": data for name, data in one.items()} | {f"a/two {name}": data for name, data in two.items()}
    files |= {"alone/level 0.dcm": dicom_slide(PIXELS[:, ::-1], mpp=0.5)["level 0.dcm"]}
    files |= {"zipped.zip": zipped.getvalue(), "alone/mr.dcm": dicom(np.arange(4096, dtype=np.uint16).reshape(64, 64))}
    out = tmp_path / "archive"
    source, key = write_files(tmp_path / "slides", files), fixed_key(tmp_path / "key")
    options = PrepareOptions(sources=[source], out=out, key=key, mpp=1.0, tile=64, workers=1)
    summary = prepare(options)
    archive = Archive.open(out)
    assert verify(archive) == []
    outcomes: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for row in inputs_of(options):
        outcomes[row["path"].removeprefix(f"{source}/")][row["outcome"], row["reason"].partition(":")[0]] += 1
    for name in ("a/level 0.dcm", "a/two level 0.dcm", "alone/level 0.dcm"):
        assert outcomes[name].keys() == {("written", ""), ("filtered", "background")}, name
        assert outcomes[name].total() == 4 * 6
    for name in ("a/level 1.dcm", "a/two level 1.dcm"):
        assert outcomes[name] == {("skipped", "level of a DICOM slide"): 1}
    for name in ("a/label.dcm", "a/two label.dcm"):
        assert outcomes[name] == {("skipped", "label of a slide"): 1}
    for level in (0, 1):
        assert outcomes[f"zipped.zip!/level {level}.dcm"] == {("quarantined", "part of a slide"): 1}
    assert outcomes["zipped.zip!/label.dcm"] == {("filtered", "label of a slide"): 1}
    assert outcomes["alone/mr.dcm"] == {("written", ""): 1}
    assert sum(counted.total() for counted in outcomes.values()) == len(read_accounting(out))

    rows = archive.columns(np.arange(summary.samples), ["id", "group", "mpp", "modality", "manufacturer"])
    of_slides = ~np.isnan(rows["mpp"])
    assert set(rows["modality"][of_slides]) == {"SM"}
    assert set(rows["manufacturer"][of_slides]) == {"Hamamatsu"}
    assert len(set(rows["group"][of_slides])) == 2  # the same patient's, and one of nobody's
    pictures = [np.asarray(image_of(archive, sample)).reshape(-1, 3) for sample in np.flatnonzero(of_slides).tolist()]
    red = np.abs(np.concatenate(pictures) - np.array([200.0, 40, 40])).max(axis=1) < 20
    assert red.mean() < 1e-3  # the label
    stored = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not any(name in stored for name in (b"Roe", b"MRN-77"))

    (source / "a" / "level 2.dcm").write_bytes((source / "a" / "level 1.dcm").read_bytes())
    assert prepare(options).grown == [f"{source}/a/level 0.dcm"]


def test_slides_of_a_study_that_names_no_patient_are_one_group():
    """As after anonymisation; with whatever else the study has."""
    study = {"PatientID": "", "StudyInstanceUID": "1.2.3"}
    files = [dicom_slide(pixels, mpp=0.5, **study) for pixels in (PIXELS, PIXELS[::-1])]
    settings = FileSettings(slide=SlideSettings(mpp=2.0, tile=64))
    found = [
        *images_of([files[0]["level 0.dcm"], files[0]["level 1.dcm"]], DECODER, settings),
        *images_of([files[1]["level 0.dcm"], files[1]["level 1.dcm"]], DECODER, settings),
        *images_of(dicom(np.arange(4096, dtype=np.uint16).reshape(64, 64), **study), DECODER, settings),
    ]
    groups = [image.patient for image in found if isinstance(image, PreparedImage)]
    assert len(groups) >= 5
    assert len(set(groups) - {""}) == 1 == len(set(groups))


def test_a_dicom_slide_that_openslide_cannot_read_is_one_row(tmp_path):
    """And without --mpp, frames are taken as of any other file, of a label none."""
    sparse = dicom_slide(PIXELS, mpp=0.5)
    sparse["level 1.dcm"] = sparse["level 1.dcm"].replace(b"TILED_FULL", b"TILED_NONE")
    source, key = write_files(tmp_path / "slides", sparse | {"p.png": encode(gradient(), "PNG")}), tmp_path / "key"
    options = PrepareOptions(sources=[source], out=tmp_path / "a", key=fixed_key(key), mpp=1.0, tile=64, workers=1)
    prepare(options)
    rows = {Path(row["path"]).name: row for row in inputs_of(options)}
    assert (rows["level 0.dcm"]["outcome"], rows["level 1.dcm"]["outcome"]) == ("quarantined", "skipped")
    assert rows["level 0.dcm"]["reason"].startswith("damaged slide: ")
    options = PrepareOptions(sources=[source], out=tmp_path / "b", key=key, workers=1)
    prepare(options)
    rows = {Path(row["path"]).name: row for row in inputs_of(options)}
    assert [rows[f"level {level}.dcm"]["outcome"] for level in (0, 1)] == ["written", "written"]
    assert (rows["label.dcm"]["outcome"], rows["label.dcm"]["reason"]) == ("filtered", "label of a slide")


def image_of(archive: Archive, sample: int) -> Image.Image:
    row = archive.columns(np.array([sample]), ["shard", "offset", "size"])
    with archive.shard_path(int(row["shard"][0])).open("rb") as file:
        file.seek(int(row["offset"][0]))
        return Image.open(io.BytesIO(file.read(int(row["size"][0]))))


def test_without_the_option_nothing_changes():
    assert slide_tiles(slide(PIXELS, mpp=0.5), SlideSettings()) is None
    with pytest.raises(UserError, match="tile is the side of tiles of whole slides: give --mpp too"):
        PrepareOptions(sources=["x"], out="y", tile=64)
