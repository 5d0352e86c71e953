"""The tables of well-known challenges as they are downloaded: each image's class, group and split.

The challenges' own splits are taken. Images are found by their names, wherever the user has unpacked them; what is
missing is told with the file to download.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastfgssl.archive.labels.assignment import Facts, Labels, Row, by_entry, ids_by_name, match_rows, read_table
from fastfgssl.archive.labels.one_hot import number
from fastfgssl.archive.listing import Listing
from fastfgssl.runtime.errors import UserError


class Download(NamedTuple):
    """A file or a folder that a challenge comes in."""

    name: str
    source: str
    """The file to download that has it."""


class Part(NamedTuple):
    """The images of one split."""

    split: str
    images: Download
    """Their folder; images of several splits or tasks may have the same name."""
    table: Download | None
    """Their classes; None where the challenge keeps them to itself."""


class Preset(NamedTuple):
    """A challenge."""

    page: str
    """Where to download it."""
    parts: tuple[Part, ...]
    """The first, for training, has to be there."""
    image: str
    """Column of the tables with an image's name."""
    classes: tuple[str, ...]
    one_hot: tuple[str, ...] = ()
    """Columns that hold 1 for images of the class of that name, and 0 for others."""
    otherwise: str | None = None
    """Class of images for which all of these columns hold 0; None if there can be none."""
    code: str | None = None
    """Column with the class itself, where it is not `one_hot`."""
    groups: Download | None = None
    """Table of what belongs together of the training images."""
    group: str = ""
    """Its column."""
    leave_out: tuple[str, ...] = ()
    """Names of image files that are no photographs."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What a table says of the class in."""
        return (self.code,) if self.code else self.one_hot

    @property
    def advice(self) -> str:
        """Where the images for training come from."""
        return f"download {self.parts[0].images.source} from {self.page} and unpack it there"


def _zipped(name: str) -> Download:
    return Download(name, f"{name}.zip")


_ISIC_MASKS = ("*_superpixels.png", "*_segmentation.png", "*_attribute_*.png")
_DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_APTOS = "aptos2019-blindness-detection.zip"

PRESETS = {
    # task 3: diagnosis, by balanced accuracy
    "isic2018": Preset(
        page="https://challenge.isic-archive.com/data/#2018",
        parts=tuple(
            Part(
                split,
                _zipped(f"ISIC2018_Task3_{name}_Input"),
                Download(f"ISIC2018_Task3_{name}_GroundTruth.csv", f"ISIC2018_Task3_{name}_GroundTruth.zip"),
            )
            for split, name in (("train", "Training"), ("val", "Validation"), ("test", "Test"))
        ),
        image="image",
        classes=_DIAGNOSES,
        one_hot=_DIAGNOSES,
        groups=Download("ISIC2018_Task3_Training_LesionGroupings.csv", "ISIC2018_Task3_Training_LesionGroupings.csv"),
        group="lesion_id",
        leave_out=_ISIC_MASKS,
    ),
    # part 3: melanoma against the rest and seborrheic keratosis against the rest, by the mean of their AUROCs
    "isic2017": Preset(
        page="https://challenge.isic-archive.com/data/#2017",
        parts=tuple(
            Part(
                split,
                _zipped(f"ISIC-2017_{name}_Data"),
                Download(f"ISIC-2017_{name}_Part3_GroundTruth.csv", f"ISIC-2017_{name}_Part3_GroundTruth.csv"),
            )
            for split, name in (("train", "Training"), ("val", "Validation"), ("test", "Test_v2"))
        ),
        image="image_id",
        classes=("melanoma", "nevus", "seborrheic_keratosis"),
        one_hot=("melanoma", "seborrheic_keratosis"),
        otherwise="nevus",
        leave_out=_ISIC_MASKS,
    ),
    # diabetic retinopathy from 0 to 4, by quadratic weighted kappa
    "aptos2019": Preset(
        page="https://www.kaggle.com/competitions/aptos2019-blindness-detection/data",
        parts=(
            Part("train", Download("train_images", _APTOS), Download("train.csv", _APTOS)),
            Part("test", Download("test_images", _APTOS), None),
        ),
        image="id_code",
        classes=("0", "1", "2", "3", "4"),
        code="diagnosis",
    ),
}


def read_preset(name: str, found: Listing) -> Labels:
    """What the challenge `name`, a key of `PRESETS`, says of the images that were found.

    Its tables lie below the sources, or beside them. Raises UserError if its training images or their tables are
    missing, and if a table is not the challenge's; what is missing of other splits is told in the result.
    """
    preset = PRESETS[name]
    by_name = ids_by_name(found.entries)
    groups = _read_groups(preset, found)
    facts: dict[str, Facts] = {}
    by_folder: dict[str, Facts] = {}  # of images that no table names
    unmatched: list[str] = []
    missing: list[Download] = []
    num_rows = 0
    for part in preset.parts:
        below = {entry.name for entry in found.entries if f"/{part.images.name}/" in entry.path}
        table = _find_table(part.table, found) if part.table else None
        rows = list(_read_rows(preset, part, table, groups or {})) if table else []
        matched, told = match_rows(rows, partial(_ids, by_name, below), name)
        for id in matched.keys() & facts.keys():
            raise UserError(f"{name}: the tables of {facts[id].split} and of {part.split} both name {id}")
        facts |= matched
        by_folder |= dict.fromkeys(below, Facts(None, None, part.split))
        unmatched += told
        num_rows += len(rows)
        if part.table and not table:
            missing.append(part.table)
        if not matched and (rows or not below):
            missing.append(part.images)
        if part is preset.parts[0]:
            if preset.groups and groups is None:
                missing.append(preset.groups)
            if missing:
                raise UserError(f"{name}: {_told(missing, preset, found)}")
    told_missing = _told(missing, preset, found) if missing else ""
    return Labels(by_entry(by_folder | facts, found), sorted(preset.classes), num_rows, unmatched, told_missing)


def _ids(by_name: Mapping[str, set[str]], below: set[str], cell: str) -> set[str]:
    """Images of a name; if there are several, those `below` the folder of its split."""
    ids = by_name.get(cell, set())
    return ids & below or ids if len(ids) > 1 else ids


def _told(lacking: Sequence[Download], preset: Preset, found: Listing) -> str:
    names = ", ".join(download.name for download in lacking)
    sources = ", ".join(dict.fromkeys(download.source for download in lacking))
    where = ", ".join(map(str, found.roots))
    return f"{names} not found below {where}: download {sources} from {preset.page} and unpack there"


def _find_table(wanted: Download, found: Listing) -> Path | None:
    """The table of that name, below a source or beside one; None if there is none."""
    beside = [root.parent / way / wanted.name for root in found.roots for way in ("", Path(wanted.name).stem)]
    tables = [table for table in found.tables if table.name == wanted.name] or [
        file for file in beside if file.exists()
    ]
    for other in tables[1:]:
        if other.read_bytes() != tables[0].read_bytes():
            raise UserError(f"{tables[0]} and {other} differ: leave the one of the challenge, and move the other away")
    return tables[0] if tables else None


def _read_groups(preset: Preset, found: Listing) -> dict[str | None, str | None] | None:
    """The group of each training image by its name; None if the challenge has a table of them, and it is not there."""
    if preset.groups is None:
        return {}
    table = _find_table(preset.groups, found)
    if table is None:
        return None
    return {cells[preset.image]: cells[preset.group] for _, cells in read_table(table, (preset.image, preset.group))}


def _read_rows(preset: Preset, part: Part, table: Path, groups: Mapping[str | None, str | None]) -> Iterator[Row]:
    for line, cells in read_table(table, (preset.image, *preset.columns)):
        label = cells[preset.code] if preset.code else _one_hot(preset, cells)
        if label not in preset.classes:
            said = ", ".join(f"{column}={cells[column] or ''}" for column in preset.columns)
            raise UserError(f"{table}, line {line}: {said} names none of the classes {', '.join(preset.classes)}")
        image = cells[preset.image]
        yield Row(f"{table.name}, line {line}", image or "", Facts(label, groups.get(image), part.split))


def _one_hot(preset: Preset, cells: dict[str, str | None]) -> str | None:
    """The class whose column holds 1 where all others hold 0; None if they hold anything else."""
    values = [number(cells[column]) for column in preset.one_hot]
    if sorted(values) == [0] * (len(values) - 1) + [1]:
        return preset.one_hot[values.index(1)]
    return preset.otherwise if values == [0] * len(values) else None
