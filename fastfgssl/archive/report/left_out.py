"""What left-out pictures looked like: a few of each kind, kept beside the key because text in them may name people.

Workers keep previews of pictures that they leave out, see `building.previews`. Of all that parts and earlier runs have
kept, those whose digests come first stay: `SHOWN` of a kind, whatever the order they come in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import DUPLICATE, OUTCOMES, WRITTEN
from fastfgssl.archive.building.inputs import write_private
from fastfgssl.archive.building.parts import IMAGES, read_part
from fastfgssl.archive.building.plan import DonePart, Inputs
from fastfgssl.archive.building.previews import digest_of, kind_of
from fastfgssl.archive.images.preview import preview, shown_pixels
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.counting import drawn
from fastfgssl.archive.report.samples import Samples

SHOWN = 48
NEAR, NEAR_KEPT = "near-duplicate", "near-duplicate, kept"

_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("repeats", pa.int64()),
        pa.field("picture", pa.binary(), nullable=False),
    ]
)


class LeftOut(NamedTuple):
    """An input that was left out, or that is nearly the same as another."""

    kind: str
    """Of the reason, or `NEAR`, or `NEAR_KEPT`."""
    digest: str
    """Decides whether it stays."""
    id: str
    part: str
    repeats: int | None
    """The sample that it nearly repeats."""
    picture: bytes
    """JPEG."""


class _FirstPictures:
    """The first `SHOWN` of each kind among all that are added, no two of one digest."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, LeftOut]] = defaultdict(dict)

    def take(self, pictures: Iterable[LeftOut]) -> None:
        """Adds some. Of one digest the first stays by its id; what is there of the same input is replaced."""
        for found in pictures:
            of_kind = self._kinds[found.kind]
            there = of_kind.get(found.digest, found)
            if (found.id, found.part) <= (there.id, there.part):
                of_kind[found.digest] = found
            if len(of_kind) > SHOWN:
                del of_kind[max(of_kind)]

    def __iter__(self) -> Iterator[LeftOut]:
        for _, of_kind in sorted(self._kinds.items()):
            yield from (found for _, found in sorted(of_kind.items()))


def gather_left_out(
    old: Iterable[LeftOut],
    contents: Contents,
    inputs: Inputs,
    parts: Sequence[DonePart],
    ids_of: Callable[[np.ndarray], pa.Array],
    kept: Sequence[tuple[int, int, float]],
) -> list[LeftOut]:
    """A few of each kind of all that an archive has left out.

    old: what earlier runs have kept. inputs, parts: what is new, the accounting's last rows. ids_of: the ids of rows of
    the listing. kept: pairs that are nearly the same and both samples, see `thumbnails.Alike`.
    """
    accounting = contents.accounting
    pictures = _FirstPictures()
    pictures.take(_agreeing(old, accounting))
    pictures.take(_of_parts(parts, ids_of))
    pictures.take(_near_dropped(accounting, contents.copies.near, inputs, parts))
    pictures.take(_near_kept(accounting, kept, inputs, contents.samples))
    return _agreeing(pictures, accounting)


def read_left_out(path: Path) -> list[LeftOut]:
    """What earlier runs have kept; nothing if there is no such file, or it is damaged: these pictures are then gone."""
    try:
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        return [LeftOut(**row) for row in table.to_pylist()] if table.schema == _SCHEMA else []
    except (OSError, pa.ArrowException):
        return []


def write_left_out(path: Path, pictures: Iterable[LeftOut]) -> None:
    """Writes them, readable by the owner alone."""
    table = pa.Table.from_pylist([picture._asdict() for picture in pictures], schema=_SCHEMA)

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_table(table)

    write_private(path, write)


def _of_parts(parts: Iterable[DonePart], ids_of: Callable[[np.ndarray], pa.Array]) -> Iterator[LeftOut]:
    """What workers have kept."""
    for part in parts:
        batch = read_part(part.folder)
        there = np.flatnonzero(batch["preview"].is_valid())
        columns = (batch[name].take(pa.array(there)).to_pylist() for name in ("reason", "part", "preview"))
        ids = ids_of(part.rows[batch["entry"].to_numpy()[there]]).to_pylist()
        for id, reason, of_file, picture in zip(ids, *columns, strict=True):
            yield LeftOut(kind_of(reason), digest_of(picture), id, of_file or "", None, picture)


def _near_dropped(
    accounting: pa.Table, near: np.ndarray, inputs: Inputs, parts: Sequence[DonePart]
) -> Iterator[LeftOut]:
    """Of the accounting's rows `near`, int64, those that are of `inputs`, which are its last: a few of them."""
    first = len(accounting) - len(inputs.row)
    for row in drawn(accounting["id"], near[near >= first], SHOWN).tolist():
        at = row - first
        offset, size, low, high = (inputs.table[name][at].as_py() for name in ("offset", "size", "low", "high"))
        with (parts[inputs.part[at]].folder / IMAGES).open("rb") as file:
            file.seek(offset)
            picture = preview(shown_pixels(file.read(size), (low, high)), (0, 255))
        id, part, sample = (accounting[name][row].as_py() for name in ("id", "part", "sample"))
        yield LeftOut(NEAR, f"{id} {part}", id, part, sample, picture)


def _near_kept(
    accounting: pa.Table, pairs: Sequence[tuple[int, int, float]], inputs: Inputs, samples: Samples
) -> Iterator[LeftOut]:
    """A few of the `pairs` that are both samples; `inputs` are the accounting's last rows."""
    first = len(accounting) - len(inputs.row)
    held = len(samples) - int((inputs.outcome == WRITTEN).sum())
    earlier = {later: earlier for earlier, later, _ in pairs}
    rows = first + np.fromiter(earlier, np.int64, len(earlier))
    for row in drawn(accounting["id"], np.sort(rows), SHOWN).tolist():
        id, part, sample = (accounting[name][row].as_py() for name in ("id", "part", "sample"))
        other = earlier[row - first]
        twin = held + other if other < 0 else int(inputs.sample[other])
        yield LeftOut(NEAR_KEPT, f"{id} {part}", id, part, twin, samples.preview(sample))


def _agreeing(pictures: Iterable[LeftOut], accounting: pa.Table) -> list[LeftOut]:
    """Those of which the accounting says what their kind does."""
    found = list(pictures)
    ids = pa.array(sorted({picture.id for picture in found}), pa.string())
    rows = accounting.filter(pc.is_in(accounting["id"], ids)).to_pylist()
    said = {(row["id"], row["part"]): (row["outcome"], row["reason"]) for row in rows}
    return [picture for picture in found if _agrees(picture.kind, *said.get((picture.id, picture.part), ("", "")))]


def _agrees(kind: str, outcome: str, reason: str | None) -> bool:
    if kind in (NEAR, NEAR_KEPT):
        return outcome == OUTCOMES[DUPLICATE if kind == NEAR else WRITTEN]
    return outcome not in ("", OUTCOMES[WRITTEN]) and reason == kind
