"""The report of an archive: what it counts, what it shows, whom it is for, and that it is the same again."""

from __future__ import annotations

import base64
import io
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.dicom import dicom
from helpers.images import encode, fixed_key, gradient, gradient_16_bit, write_files
from helpers.report_page import Page

HOSTILE = "<script>alert(1)</script> & \"'\x1b[2J\u202e"


def plain(level: int, width: int = 64, height: int = 48) -> Image.Image:
    """A picture that is known by its mean brightness."""
    pixels = np.full((height, width), level - 6, np.uint8)
    pixels[:, width // 2 :] += 12  # enough contrast for every filter
    return Image.fromarray(pixels)


def capture(number: int) -> bytes:
    """A DICOM file that is left out for its text, with a picture that is known by its brightness."""
    return dicom(np.asarray(plain(20 * number, 40, 40)), BurnedInAnnotation="YES", WindowCenter=128, WindowWidth=256)


def files() -> dict[str, bytes]:
    cmyk = gradient(99, 80).convert("CMYK")
    deep = Image.fromarray(np.asarray(gradient_16_bit(120, 60)) // 32)
    return {
        "a/1.png": encode(gradient(300, 200), "PNG"),
        "a/2.png": encode(plain(200), "PNG"),
        "a/again.png": encode(gradient(300, 200), "PNG"),
        "b/cmyk.jpg": encode(cmyk, "JPEG"),
        "b/deep.png": encode(deep, "PNG"),
        "b/damaged.png": encode(gradient(), "PNG")[:-30],
        "b/1.dcm": capture(1),
        "b/2.dcm": capture(2),
        "notes.txt": b"",
    }


def options(tmp_path: Path, **others: object) -> PrepareOptions:
    settings = {"sources": [tmp_path / "source"], "workers": 1, "key": fixed_key(tmp_path / "private/key")}
    return PrepareOptions(out=tmp_path / "archive", **settings | others)


@pytest.fixture
def made(tmp_path) -> PrepareOptions:
    write_files(tmp_path / "source", files())
    prepare(options(tmp_path))
    return options(tmp_path)


def pages(made: PrepareOptions) -> tuple[Page, Page]:
    """The one that may be given away, and the one that may not."""
    return Page(made.out / "report.html"), Page(made.report_file)


def brightness(jpeg: bytes) -> float:
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    assert max(image.size) <= 96
    assert not image.getexif()
    return float(np.asarray(image.convert("L"), np.float64).mean())


def test_every_input_is_counted_once(made):
    for page in pages(made):
        assert page.text("h1") == ["What became of 9 inputs"]
        assert page.rows("Outcomes") == [
            ["written", "became a sample", "4", "44.4 %", ""],
            ["duplicate", "shows the picture of a sample that came first", "1", "11.1 %", ""],
            ["filtered", "is a sound picture that was not wanted", "2", "22.2 %", ""],
            ["quarantined", "is damaged, no image, or beyond a limit", "1", "11.1 %", ""],
            ["skipped", "rightly holds no image", "1", "11.1 %", ""],
            ["all inputs", "files, and each frame or page that was taken of one", "9", "100.0 %"],
        ]
        reasons = {row[0]: row[1] for row in page.rows("Why inputs were left out")}
        assert reasons == {
            "the same pixels, or nearly": "1",
            "burned-in text": "2",
            "damaged or unsupported PNG": "1",
            ".txt": "1",
        }
        assert ["300 x 200", "1", ""] in page.rows("Sizes")
        assert page.rows("Sizes")[-1] == ["all samples", "4"]


def test_a_page_needs_nothing_else_and_runs_nothing(made):
    for page in pages(made):
        assert page.unbalanced == []
        assert "script" not in page.tags
        assert not {"link", "iframe", "object", "form", "a"} & set(page.tags)
        assert {name for _, name, _ in page.attributes if name.startswith("on")} == set()
        for tag, name, value in page.attributes:
            assert name not in ("src", "href") or value.startswith("data:image/jpeg;base64,"), (tag, name, value)
        assert "url(" not in page.source
        assert "@import" not in page.source
        assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
        assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes


def test_the_samples_are_shown_as_training_sees_them(made):
    archive = Archive.open(made.out)
    sizes = [f"{w} x {h}" for w, h in zip(*archive.columns(np.arange(4), ["width", "height"]).values(), strict=True)]
    shown = pages(made)[0].figures("Samples")
    assert sorted(caption for _, caption in shown) == [f"{number}: {sizes[number]}" for number in range(4)]
    found = {caption.partition(": ")[2]: brightness(pictures[0]) for pictures, caption in shown}
    assert found["64 x 48"] == pytest.approx(200, abs=1)
    deep = np.asarray(gradient_16_bit(120, 60)) // 32
    assert found["120 x 60"] == pytest.approx(deep.mean() / 4095 * 255, abs=2)  # of 12 bits, as its levels say
    expected = np.asarray(gradient(99, 80).convert("L"), np.float64).mean()
    assert found["99 x 80"] == pytest.approx(expected, abs=5)


def test_left_out_pictures_and_names_are_for_their_owner_alone(made, tmp_path):
    inside, private = pages(made)
    for path in (made.report_file, made.left_out_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    burned = private.figures("Left out: burned-in text: 2 of 2")
    assert sorted(round(brightness(pictures[0]), -1) for pictures, _ in burned) == [20, 40]
    assert {caption for _, caption in burned} == {f"…/b/{i}.dcm (BurnedInAnnotation is YES)" for i in (1, 2)}
    ((pictures, caption),) = private.figures("The same pixels as a sample, the second name: 1 of 1")
    assert caption == "…/a/again.png…/a/1.png"
    assert brightness(pictures[0]) == pytest.approx(np.asarray(gradient(300, 200).convert("L")).mean(), abs=3)
    reasons = {row[0]: row[-1] for row in private.rows("Why inputs were left out")}
    assert reasons["damaged or unsupported PNG"] == f"{tmp_path}/source/b/damaged.png (it is cut off)"

    left_out = [base64.b64encode(picture).decode() for pictures, _ in burned for picture in pictures]
    assert not [picture for picture in left_out if picture in inside.source]
    for word in ("again", "damaged.png", "notes", "cmyk", "source", str(tmp_path), "BurnedInAnnotation"):
        assert word not in inside.source
    ids = {id for row in inside.rows("Why inputs were left out") for id in re.findall(r"[0-9a-f]{12}", row[-1])}
    assert len(ids) == 5
    assert all(id in made.inputs_file.read_text() for id in ids)


def test_what_a_filter_leaves_out_is_shown_to_the_owner(tmp_path):
    pictures = {"long.png": plain(200, 900, 40), "thin.png": plain(120, 3000, 1), "good.png": plain(90)}
    write_files(tmp_path / "source", {name: encode(picture, "PNG") for name, picture in pictures.items()})
    given = options(tmp_path, min_side=0, max_aspect=3)
    prepare(given)
    inside, private = pages(given)
    assert ["filtered", "is a sound picture that was not wanted", "2", "66.7 %", ""] in inside.rows("Outcomes")
    shown = private.figures("Left out: extreme aspect: 2 of 2")
    assert {caption: round(brightness(pictures[0]), -1) for pictures, caption in shown} == {
        "…/source/long.png (900 x 40 pixels, --max-aspect is 3)": 200,
        "…/source/thin.png (3000 x 1 pixels, --max-aspect is 3)": 120,
    }


def test_nothing_that_comes_from_outside_is_markup(tmp_path):
    name = HOSTILE.replace("/", "")
    pictures = {f"{name}{i}.png": encode(plain(50 * i), "PNG") for i in (1, 2)}
    again = {f"again {name}.png": encode(plain(50), "PNG"), f"damaged {name}.png": b"no image"}
    write_files(tmp_path / "source", pictures | again | {f"{name}.dcm": capture(3)})
    cell = HOSTILE.replace('"', '""')
    (tmp_path / "labels.csv").write_text(
        f'image,label,split\n"{name.replace(chr(34), chr(34) * 2)}1.png","{cell}",test\n'
    )
    given = options(tmp_path, labels=tmp_path / "labels.csv")
    prepare(given)
    shown = "<script>alert(1)</script> & \"'\\x1b[2J\\u202e"
    for page in pages(given):
        assert "script" not in page.tags
        assert page.unbalanced == []
        assert not set(page.source) & set("\x1b\u202e\r\0")
        assert shown in [row[0] for row in page.rows("Labels and splits")]
        assert any(caption.endswith(shown) for _, caption in page.figures("Samples"))
    private, named = pages(given)[1], shown.replace("/", "")
    ((_, caption),) = private.figures("Left out: burned-in text: 1 of 1")
    assert caption == f"…/source/{named}.dcm (BurnedInAnnotation is YES)"
    assert named in " ".join(row[-1] for row in private.rows("Why inputs were left out"))


def test_labels_splits_and_groups(tmp_path):
    rows = ["mole,A,train", "mole,A,val", "scar,B,train", "scar,,", ",,"]
    write_files(tmp_path / "source", {f"{i}.png": encode(plain(40 * i + 10), "PNG") for i in range(5)})
    table = tmp_path / "labels.csv"
    table.write_text("image,label,patient,split\n" + "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows)))
    given = options(tmp_path, labels=table)
    prepare(given)
    page, _ = pages(given)
    assert page.rows("Labels and splits") == [
        ["mole", "0", "1", "1", "2", ""],
        ["scar", "1", "1", "0", "2", ""],
        ["no label", "1", "0", "0", "1", ""],
        ["all samples", "2", "2", "1", "5"],
    ]
    assert page.rows("Groups") == [["train", "2", "2"], ["val", "1", "1"], ["1", "1", ""], ["2", "1", ""]]
    assert "Groups in more than one split: 1." in " ".join(page.text("p"))


def test_an_archive_that_has_grown_is_reported_whole(made, tmp_path):
    write_files(tmp_path / "source", {"c/3.dcm": capture(3), "c/4.png": encode(plain(99), "PNG")})
    prepare(options(tmp_path))
    inside, private = pages(made)
    assert inside.text("h1") == ["What became of 11 inputs"]
    assert len(inside.figures("Samples")) == 5
    captions = {caption.partition(" ")[0] for _, caption in private.figures("Left out: burned-in text: 3 of 3")}
    assert captions == {"…/b/1.dcm", "…/b/2.dcm", "…/c/3.dcm"}

    write_files(tmp_path / "source", {"b/damaged.png": encode(gradient(), "PNG"), "c/5.png": b""})
    prepare(options(tmp_path, retry=True))  # of what was left out, one is a sample now; what was filtered stays so
    private = pages(made)[1]
    captions = {caption.partition(" ")[0] for _, caption in private.figures("Left out: burned-in text: 3 of 3")}
    assert captions == {"…/b/1.dcm", "…/b/2.dcm", "…/c/3.dcm"}
    assert "damaged or unsupported PNG" not in [row[0] for row in private.rows("Why inputs were left out")]
    assert verify(Archive.open(made.out)) == []


def test_the_owner_gets_a_report_where_no_input_is_usable(tmp_path):
    write_files(tmp_path / "source", {"1.dcm": capture(1), "2.png": b"no picture", "3.txt": b""})
    with pytest.raises(UserError, match=r"none of the 2 images is usable, and 1 were .* and .*\.html say why$"):
        prepare(options(tmp_path))
    page = Page(options(tmp_path).report_file)
    assert "No archive was made: no input became a sample" in " ".join(page.text("p"))
    assert [row[:3:2] for row in page.rows("Outcomes")] == [
        ["filtered", "1"],
        ["quarantined", "1"],
        ["skipped", "1"],
        ["all inputs", "3"],
    ]
    ((pictures, _),) = page.figures("Left out: burned-in text: 1 of 1")
    assert round(brightness(pictures[0]), -1) == 20
    # of an archive that stays, the report does
    write_files(tmp_path / "source", {"4.png": encode(plain(200), "PNG")})
    prepare(options(tmp_path))
    report = options(tmp_path).report_file.read_bytes()
    (tmp_path / "source" / "4.png").unlink()
    with pytest.raises(UserError, match=r"inputs\.csv says why$"):
        prepare(options(tmp_path, overwrite=True))
    assert options(tmp_path).report_file.read_bytes() == report


def test_near_duplicates_are_shown_beside_what_they_repeat(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (24, 24), dtype=np.uint8))
    picture = small.resize((200, 200), Image.Resampling.BICUBIC)
    images = {"1.png": encode(picture, "PNG"), "2.jpg": encode(picture.resize((150, 150)), "JPEG", quality=80)}
    write_files(tmp_path / "source", images)
    for how, title, samples in (
        ("drop", "Nearly the same as a sample, which is shown beside it: 1 of 1", 1),
        ("report", "Samples that are nearly the same: 1 of 1", 2),
    ):
        given = options(tmp_path, near_duplicates=how, overwrite=True)
        assert prepare(given).samples == samples
        ((pictures, caption),) = pages(given)[1].figures(title)
        assert caption == "…/source/2.jpg…/source/1.png"
        assert [brightness(one) for one in pictures] == pytest.approx([np.asarray(picture).mean()] * 2, abs=3)
        assert "Near-duplicates were looked for; pairs that were found: 1." in pages(given)[0].text("p")


def test_the_same_inputs_give_the_same_bytes(made, tmp_path, monkeypatch):
    before = [path.read_bytes() for path in (made.out / "report.html", made.report_file, made.left_out_file)]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    again = options(tmp_path, overwrite=True, workers=2)
    with monkeypatch.context() as early:
        early.setattr("fastfgssl.archive.building.publish.Place.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(again)
    prepare(again)
    after = [path.read_bytes() for path in (made.out / "report.html", made.report_file, made.left_out_file)]
    assert after == before


def test_a_report_that_was_changed_or_lost_is_told_but_hinders_nobody(made):
    page = made.out / "report.html"
    page.write_bytes(page.read_bytes() + b" ")
    assert verify(Archive.open(made.out)) == ["report.html: its checksum differs from the manifest's"]
    page.unlink()
    archive = Archive.open(made.out)
    assert verify(archive) == ["report.html: No such file or directory"]
    assert archive.num_samples == 4
