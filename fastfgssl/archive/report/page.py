"""Both pages of a report: one within the archive that names nothing, one beside the key with all that it cannot show.

They are functions of the archive, and of names and left-out pictures: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastfgssl import __version__
from fastfgssl.archive.building.inputs import write_private
from fastfgssl.archive.manifest import REPORT
from fastfgssl.archive.report import sections
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.left_out import LeftOut
from fastfgssl.archive.report.markup import Markup, join, page, tag
from fastfgssl.archive.report.sheets import Names, Sheets

_SHORT_ID = 12  # digits, of which no two inputs share all
_SAMPLES = (
    sections.kept,
    sections.sizes,
    sections.levels,
    sections.devices,
    sections.labels,
    sections.groups,
    sections.duplicates,
    sections.making,
)


def write_report(archive: Path, contents: Contents) -> dict:
    """Writes the page within an archive; returns its entry in the manifest."""
    ids = [_lines(_beginning(*input) for input in some) for some in contents.examples]
    note = (
        "No name of a file or a person is on this page. Where it shows the beginning of an id, the table of inputs"
        " beside the key leads from there to the file, and the report beside it shows what was left out."
    )
    data = page(
        f"What became of {len(contents.accounting):,} inputs",
        *_head(contents, tag("p", note, class_="faint")),
        *sections.outcomes(contents),
        *sections.left_out(contents, ids, "ids begin with"),
        *_samples(contents),
    )
    (archive / REPORT).write_bytes(data)
    return {"name": REPORT, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_private_report(file: Path, inputs_file: Path, contents: Contents, pictures: Iterable[LeftOut]) -> None:
    """Writes the page for the owner of the names, readable by them alone.

    inputs_file: the table of inputs, with all of them. Raises UserError for what the system refuses.
    """
    sheets = Sheets(contents, pictures)
    examples = contents.examples
    names = Names(inputs_file, {*(input for some in examples for input in some), *sheets.inputs()})
    note = (
        "This page holds names of files, and pictures that were left out, some because text in them may name people."
        " It is for those who may see the sources. Give away the archive, whose own report has neither."
    )
    data = page(
        f"What became of {len(contents.accounting):,} inputs, by name",
        *_head(contents, tag("p", note, class_="warn")),
        *sections.outcomes(contents),
        *sections.left_out(contents, [_lines(names.whole(input) for input in some) for some in examples], "examples"),
        *sheets.shown(names),
        *_samples(contents),
    )
    write_private(file, lambda opened: opened.write(data))


def _head(contents: Contents, note: Markup) -> Iterator[Markup]:
    yield tag("h1", f"What became of {len(contents.accounting):,} inputs")
    shards = len(contents.manifest["shards"])
    said = f"An archive of {len(contents.samples):,} samples in {shards:,} shard{'s' * (shards != 1)}, made"
    if not len(contents.samples):
        said = "No archive was made: no input became a sample. Read"
    yield tag("p", f"{said} by fastfgssl {__version__}.")
    yield note


def _samples(contents: Contents) -> Iterator[Markup]:
    for section in _SAMPLES if len(contents.samples) else ():
        yield from section(contents)


def _beginning(id: str, part: str) -> Markup:
    return join([tag("code", id[:_SHORT_ID]), part] if part else [tag("code", id[:_SHORT_ID])], ", ")


def _lines(pieces: Iterable[object]) -> Markup:
    return join(pieces, "<br>")
