"""What `prepare` is asked to do, and what it tells."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastfgssl.archive.building.parts import PartOptions
from fastfgssl.archive.building.shards import SHARD_BYTES
from fastfgssl.archive.dicom.filters import header_filters
from fastfgssl.archive.dicom.pictures import DicomSettings
from fastfgssl.archive.images.decoded import FileSettings
from fastfgssl.archive.images.filters import PictureFilters
from fastfgssl.archive.images.hashes import PIXEL_HASH
from fastfgssl.archive.images.image import ImageSettings
from fastfgssl.archive.images.slides import SlideSettings
from fastfgssl.archive.labels.drawing import read_shares
from fastfgssl.archive.labels.presets import PRESETS
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.opening import path_or_url
from fastfgssl.config.convert import convert
from fastfgssl.config.section import field_types
from fastfgssl.runtime.errors import UserError, require_one_of
from fastfgssl.runtime.files import user_path

MIB = 1 << 20
_MOST_MIB = 1 << 42  # of which the bytes are still a number of the system's
_PATHS = ("out", "key", "labels")
_LABELS = ("labels", "labels_preset", "labels_from")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `prepare` is asked to do."""

    sources: Sequence[Path | str] = ()
    """Folders, single files, containers, and URLs."""
    out: Path
    """The archive's folder. If it holds one already, what is new is added to it; it must lie in none of the sources."""
    lists: Sequence[Path] = ()
    """Files with a path a line, relative to where they lie, each a further source."""
    key: Path | None = None
    """The file with the key to ids and groups, made if it is not there; default: `OUT.private/key`."""
    labels: Path | None = None
    """A CSV, or a workbook as FILE.xlsx or FILE.xlsx:SHEET, see `assignment.read_labels`."""
    group_column: str | None = None
    """Its column that says which images belong together."""
    image_column: str = "image"
    """Its column that says which image a row is about."""
    label_column: str = "label"
    """Its column with the class, or a column for each class, separated by commas, that holds 1 or 0."""
    labels_preset: str | None = None
    """A challenge whose tables lie below the sources or beside them: a key of `labels_presets.PRESETS`."""
    labels_from: Literal["folders"] | None = None
    """folders: an image's class is the folder it lies in, see `labels.labels_of_folders`."""
    split: str | None = None
    """Shares of train, val and test such as 0.8/0.1/0.1, or of train and test, by which the images are split at random,
    see `drawing.draw_splits`."""
    by: Literal["group", "image"] = "group"
    """What `split` never divides: groups, or images of the same pixels alone."""
    seed: int = 0
    """Of the draw: another gives another split."""
    members: Literal["json", "cls"] | None = None
    """What stands beside each image in the shards for other readers, see `members.Members`; None for nothing."""
    short_side: int | None = None
    """Larger images are made smaller, to this many pixels on their short side."""
    encode: str = "keep"
    """keep, png or jpeg:N, see `image.ImageSettings`."""
    pages: Literal["first", "all"] = "all"
    """Of a TIFF with several, each an image of its own."""
    frames: str = "middle"
    """Of a DICOM file with several: middle, all, or every:N."""
    window: str = "header"
    """What is black and white in gray DICOM images: header, percentiles, or CENTER/WIDTH."""
    depth: int = 8
    """Bits of gray DICOM images: 8, windowed, or 16, with the window told beside, for training to apply."""
    mpp: float | None = None
    """Whole slides become tiles of so many microns per pixel; None reads them as other TIFFs."""
    tile: int | None = None
    """Pixels on a side of such a tile; default: 256."""
    burned_in: Literal["skip", "keep", "mask"] = "skip"
    """What becomes of images with text in their pixels: left out, kept, or painted over."""
    find_text: Literal["dicom", "all"] = "dicom"
    """Which are looked at for text: those of DICOM files, or of all files."""
    min_side: int = 16
    """Pictures with fewer pixels on their short side are left out; 0 takes all."""
    min_contrast: float = 0.25
    """So are pictures that are nearly constant, see `PictureFilters`; 0 takes all."""
    max_aspect: float = 20.0
    """So are pictures that are longer for their width; 0 takes all."""
    modality: str | None = None
    """Codes of DICOM, separated by commas: of DICOM images, only those of these modalities are taken."""
    leave_out: str = "localizer"
    """Kinds of DICOM images that are left out, separated by commas: derived, localizer, secondary; or none."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What becomes of an image whose pixels are those of an earlier one."""
    near_duplicates: Literal["report", "group", "drop"] | None = None
    """What becomes of an image that is nearly the same as an earlier one, also of the archive; None looks for none."""
    workers: int | None = None
    """Processes; default: one a core, with an engine one a CPU that the cluster grants."""
    engine: Literal["ray"] | None = None
    """Who makes the parts: the nodes of a Ray cluster that is there already; None for processes of this machine."""
    ray_address: str | None = None
    """HOST:PORT of the cluster; default: `$RAY_ADDRESS`."""
    shard_size: float = SHARD_BYTES / MIB
    """MiB of images in a shard, at most, unless a single one has more."""
    max_pixels: int = ImageSettings.max_pixels
    """Larger images are quarantined without decoding them: small files can claim any size."""
    max_bytes: int = PartOptions().max_bytes
    """Larger files are quarantined without reading them."""
    max_seconds: float = PartOptions().max_seconds
    """Files that take a worker longer are quarantined."""
    max_memory: float = PartOptions().max_memory / MIB
    """MiB that a worker may take for one file; those that need more are quarantined."""
    nested: int = 3
    """How many containers may lie in one another for their members to be taken; 0 for those of none."""
    max_ratio: float = SourceOptions().max_ratio
    """How many bytes a container may give for each of its own, beyond the first 64 MiB: the rest is quarantined."""
    max_expanded: int = SourceOptions().max_expanded
    """How many bytes a container may give: the rest is quarantined."""
    max_unreadable: float = 0.01
    """Share of the files that may be unreadable, or one: more are an outage, which ends the run."""
    follow_links: bool = False
    """Follow symbolic links that lead out of a source."""
    retry: bool = False
    """Take what was quarantined or unreadable when the archive was made once again."""
    overwrite: bool = False
    """Replace the archive at `out`, once the new one is complete, instead of adding to it."""
    part: str | None = None
    """I/N: do the I-th of N shares of the work and no more; the same without it does what is left."""
    dry_run: bool = False
    """Only say what would be done."""

    def __post_init__(self) -> None:
        cls: type = self.__class__
        for name, hint in field_types(cls).items():
            object.__setattr__(self, name, _converted(name, getattr(self, name), hint))
        if not self.sources and not self.lists:
            raise UserError("give at least one source: a folder, an image file, a zip or tar, a URL, or --list")
        limits = ("max_pixels", "max_bytes", "max_seconds", "max_memory", "max_ratio", "max_expanded")
        for name in ("short_side", "workers", "shard_size", "mpp", "tile", *limits):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name.replace('_', '-')} must be above 0, not {value}")
        for name in ("shard_size", "max_memory"):
            if (value := getattr(self, name)) > _MOST_MIB:
                raise UserError(f"{name.replace('_', '-')} is in MiB: 2^42 of them are enough, not {value:g}")
        if self.nested < 0:
            raise UserError(f"nested must be 0 or more, not {self.nested}")
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(f"max-unreadable must be between 0 and 1, not {self.max_unreadable}")
        if self.labels_preset is not None:
            require_one_of("labels-preset", self.labels_preset, PRESETS)
        if self.members == "cls" and all(getattr(self, name) is None for name in _LABELS):
            raise UserError(
                "--members cls writes each image's class: give --labels, --labels-preset or --labels-from too"
            )
        if self.split is not None:
            read_shares(self.split)
        elif self.by != "group" or self.seed:
            raise UserError(f"--{'seed' if self.seed else 'by'} says how --split divides the images: give --split too")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise UserError(f"seed must have at most 63 bits, not {self.seed}")
        if self.tile is not None and self.mpp is None:
            raise UserError("tile is the side of tiles of whole slides: give --mpp too, their microns per pixel")
        self.part_options()  # which refuses what its settings cannot be
        given = [f"--{name.replace('_', '-')}" for name in _LABELS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} each say what images show: give one of them")
        for name in ("group_column", "image_column", "label_column"):
            if self.labels is None and getattr(self, name) != getattr(type(self), name):
                raise UserError(f"{name.replace('_', '-')} names a column of the labels: give --labels too")
        if self.engine is not None and self.part is not None:
            raise UserError("--engine ray shares the work out itself: leave out --part")
        if self.engine is None and self.ray_address is not None:
            raise UserError("--ray-address names a cluster for --engine ray: give that too")
        if self.overwrite and self.retry:
            raise UserError("--overwrite makes the archive anew, --retry adds to it: give one of them")
        self.share()
        out = self.out.resolve()
        for source in (path.resolve() for path in self.sources if isinstance(path, Path)):
            if out == source or source in out.parents or out in source.parents:
                raise UserError(f"the archive {self.out} and the source {source} must not contain each other")
        if out in self.key_file.resolve().parents:
            raise UserError(f"the key {self.key} must not lie in the archive, which is there to be given away")
        for taken in (out.with_name(f"{out.name}.{what}") for what in ("partial", "replaced")):
            if taken in self.key_file.resolve().parents:
                raise UserError(f"the key {self.key} must not lie in {taken}, which is removed in the end")

    @property
    def key_file(self) -> Path:
        """Where the key is, or will be."""
        return self.key or self.out.resolve().with_name(f"{self.out.resolve().name}.private") / "key"

    @property
    def inputs_file(self) -> Path:
        """Where the table of names will be: beside the key."""
        return self._private("inputs.csv")

    @property
    def report_file(self) -> Path:
        """Where the report with names and left-out pictures will be."""
        return self._private("report.html")

    @property
    def left_out_file(self) -> Path:
        """Where those pictures will be, for reports to come."""
        return self._private("left_out.arrow")

    @property
    def thumbnails_file(self) -> Path:
        """Where the thumbnails of samples are kept, by which near-duplicates of them are found."""
        return self._private("thumbnails.npy")

    def _private(self, name: str) -> Path:
        return self.key_file.resolve().with_name(f"{self.out.resolve().name}.{name}")

    def share(self) -> tuple[int, int] | None:
        """I and N of `part`. Raises UserError if it is neither that nor None."""
        if self.part is None:
            return None
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"part must be I/N, with I from 1 to N, not {self.part!r}")
        return int(match[1]), int(match[2])

    def of_pictures(self) -> dict[str, str | int | float | None]:
        """What all pictures of an archive should have in common. A filter that takes all is None."""
        names = ("short_side", "encode", "pages", "frames", "window", "depth", "mpp", "tile", "burned_in")
        same = {name: getattr(self, name) for name in names} | {"find_text": "all" if self.find_text == "all" else None}
        filters = {name: getattr(self, name) or None for name in ("min_side", "min_contrast", "max_aspect")}
        dicom = header_filters(self.modality, self.leave_out)
        chosen = {"modality": ",".join(dicom.modalities), "leave_out": ",".join(dicom.leave_out)}
        return same | filters | {name: value or None for name, value in chosen.items()}

    def of_archive(self) -> dict[str, str | int | float | None]:
        """What all of an archive should have in common: its pictures, their splits, and what is beside them."""
        drawn = self.split is not None
        how = {"split": self.split, "by": self.by if drawn else None, "seed": self.seed if drawn else None}
        return self.of_pictures() | how | {"members": self.members}

    def source_options(self) -> SourceOptions:
        """What sources need to know."""
        unread = PRESETS[self.labels_preset].leave_out if self.labels_preset else ()
        limits = self.nested, self.max_bytes, self.max_ratio, self.max_expanded
        return SourceOptions(unread, self.follow_links, *limits, self.mpp is not None)

    def part_options(self, pixel_hash: str = PIXEL_HASH) -> PartOptions:
        """What parts depend on. pixel_hash: that of the archive which they are for."""
        image = ImageSettings(
            short_side=self.short_side,
            max_pixels=self.max_pixels,
            pages=self.pages,
            encode=self.encode,
            burned_in=self.burned_in,
            find_text=self.find_text,
            pixel_hash=pixel_hash,
            thumbnails=self.near_duplicates is not None,
            filters=PictureFilters(min_side=self.min_side, min_contrast=self.min_contrast, max_aspect=self.max_aspect),
        )
        dicom = DicomSettings(
            frames=self.frames,
            window=self.window,
            depth=self.depth,
            max_pixels=self.max_pixels,
            filters=header_filters(self.modality, self.leave_out),
        )
        slide = SlideSettings(mpp=self.mpp, tile=self.tile or SlideSettings.tile)
        file = FileSettings(image=image, dicom=dicom, slide=slide)
        return PartOptions(file, self.max_bytes, self.max_seconds, int(self.max_memory * MIB))


def _converted(name: str, value: Any, hint: Any) -> Any:
    """What an option was given, as the type that it has; a `UserError` that names it if that cannot be."""
    key = name.replace("_", "-")
    if name in ("sources", "lists"):
        if isinstance(value, (str, os.PathLike)) or not hasattr(value, "__iter__"):
            raise UserError(f"{key} = {value!r}: must be a list, as [{str(value)!r}]")
        return tuple(_path(key, one) for one in value)
    if name in _PATHS:
        return _path(key, value) if value is not None or name == "out" else None
    if isinstance(value, str) and (hint is str or str in get_args(hint)):
        return value  # also one that means something elsewhere, as null
    return convert(key, value, hint)


def _path(key: str, value: Any) -> Path | str:
    """A path, in which `~` is the home folder; of sources, a URL stays one."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise UserError(f"{key} = {value!r}: must be a path")
    if key != "sources" and re.match(r"[A-Za-z][\w+.-]+:/", str(value)):  # which would make folders of such names here
        raise UserError(f"{key} = {str(value)!r}: must be a path on this machine, not a URL")
    return path_or_url(str(value)) if key == "sources" and isinstance(value, str) else user_path(os.fspath(value))
