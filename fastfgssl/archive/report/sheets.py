"""Contact sheets of what was left out, with the names of files: for the page beside the key alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fastfgssl.archive.building.inputs import read_inputs
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.counting import drawn
from fastfgssl.archive.report.left_out import NEAR, NEAR_KEPT, SHOWN, LeftOut
from fastfgssl.archive.report.markup import Markup, image, join, tag

Input = tuple[str, str]
"""Id and part."""


class Names:
    """Where some inputs lie, and why they were left out, of the table of all inputs."""

    def __init__(self, file: Path, inputs: Collection[Input]) -> None:
        ids = {id for id, _ in inputs}
        self._paths: dict[str, str] = {}
        self._reasons: dict[Input, str] = {}
        for id, part, path, _, reason in (row for row in read_inputs(file) if len(row) == 5 and row[0] in ids):
            self._paths[id] = path
            if (id, part) in inputs:
                self._reasons[id, part] = reason

    def path(self, input: Input) -> str:
        """Where it lies, and which image of its file it is; its id, if the table has lost it."""
        id, part = input
        return f"{self._paths.get(id, id)}{f', {part}' if part else ''}"

    def whole(self, input: Input) -> str:
        """Its path, and the whole reason if that says more than its kind."""
        _, _, detail = self._reasons.get(input, "").partition(": ")
        return f"{self.path(input)}{f' ({detail})' if detail else ''}"

    def caption(self, input: Input, *, why: bool = False) -> Markup:
        """The end of its path, and the whole where it is pointed at. why: with what the reason says beside its kind."""
        path = self.path(input)
        *above, folder, name = ["", *path.split("/")]
        end = f"…/{folder}/{name}" if any(above) else path
        detail = self._reasons.get(input, "").partition(": ")[2].partition("; ")[0] if why else ""
        return tag("span", f"{end}{f' ({detail})' if detail else ''}", title=path)


class Sheets:
    """The sheets of an archive."""

    def __init__(self, contents: Contents, pictures: Iterable[LeftOut]) -> None:
        self._contents = contents
        self._kinds: dict[str, list[LeftOut]] = defaultdict(list)
        for picture in pictures:
            self._kinds[picture.kind].append(picture)
        rows = drawn(contents.accounting["id"], contents.copies.exact, SHOWN).tolist()
        self._copies = [(contents.input(row), contents.accounting["sample"][row].as_py()) for row in rows]

    def inputs(self) -> Iterator[Input]:
        """Those whose names it shows."""
        for input, sample in self._copies:
            yield from (input, self._input_of(sample))
        for picture in (picture for some in self._kinds.values() for picture in some):
            yield picture.id, picture.part
            if picture.repeats is not None:
                yield self._input_of(picture.repeats)

    def shown(self, names: Names) -> Iterator[Markup]:
        """The section."""
        contents = self._contents
        if not self._copies and not self._kinds:
            return
        yield tag("h2", "Left-out pictures")
        yield tag(
            "p",
            f"At most {SHOWN} of each kind, drawn by digests; each picture once. Point at a name for its whole path.",
            class_="faint",
        )
        if self._copies:
            yield tag(
                "h3", f"The same pixels as a sample, the second name: {_some(self._copies, len(contents.copies.exact))}"
            )
            figures = []
            for input, sample in self._copies:
                pair = [names.caption(input), names.caption(self._input_of(sample))]
                figures.append(_figure([contents.samples.preview(sample)], pair))
            yield tag("div", *figures, class_="sheet")
        totals: dict[str, int] = defaultdict(int)
        for reason in contents.reasons[0]:
            totals[reason.reason] += reason.inputs
        titles = {
            NEAR: ("Nearly the same as a sample, which is shown beside it", len(contents.copies.near)),
            NEAR_KEPT: ("Samples that are nearly the same", contents.manifest.get("near_duplicates") or 0),
        }
        for kind, pictures in self._kinds.items():
            title, total = titles.get(kind, (f"Left out: {kind}", totals[kind]))
            yield tag("h3", f"{title}: {_some(pictures, total)}")
            figures = [self._of(picture, names) for picture in pictures]
            yield tag("div", *figures, class_="sheet pairs" if kind in titles else "sheet")

    def _of(self, picture: LeftOut, names: Names) -> Markup:
        input = picture.id, picture.part
        if picture.repeats is None:
            return _figure([picture.picture], [names.caption(input, why=True)])
        other = self._contents.samples.preview(picture.repeats)
        return _figure([picture.picture, other], [names.caption(input), names.caption(self._input_of(picture.repeats))])

    def _input_of(self, sample: int) -> Input:
        return self._contents.samples.table["id"][sample].as_py(), ""


def _some(shown: Collection[object], total: int) -> str:
    return f"{len(shown):,} of {total:,}"


def _figure(pictures: Iterable[bytes], captions: Iterable[Markup]) -> Markup:
    return tag("figure", join(image(picture, "") for picture in pictures), tag("figcaption", join(captions, "<br>")))
