"""The sections of a report that say what is in an archive, and name nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.report.charts import histogram, map_of_sizes
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.counting import Tally, binned, tally
from fastfgssl.archive.report.markup import Bar, Markup, PerCent, image, table, tag

_MIB = 1 << 20
_MOST = 12  # rows of a table of values
_CLASSES = 100
_SPLITS = 6
_MEANING = {
    "written": "became a sample",
    "duplicate": "shows the picture of a sample that came first",
    "filtered": "is a sound picture that was not wanted",
    "quarantined": "is damaged, no image, or beyond a limit",
    "skipped": "rightly holds no image",
    "unreadable": "could not be read from where it lies",
}
_HEADERS = {"modality": "Modality", "body_part": "Body part", "manufacturer": "Manufacturer"}


def outcomes(contents: Contents) -> Iterator[Markup]:
    """How many inputs became what."""
    total = len(contents.accounting)
    most = max(contents.outcomes.values())
    rows = [
        (name, _MEANING[name], count, PerCent(count / total), Bar(count / most))
        for name, count in contents.outcomes.items()
    ]
    assert sum(row[2] for row in rows) == total
    yield tag("h2", "Outcomes")
    sums = ("all inputs", "files, and each frame or page that was taken of one", total, PerCent(1.0))
    yield table(("outcome", "the input", "inputs", "share", ""), rows, sums=sums)


def left_out(contents: Contents, examples: Sequence[object], how: str) -> Iterator[Markup]:
    """Why inputs were left out. examples: what to show of those of each reason; how: the heading over them."""
    found, rest = contents.reasons
    if not found:
        return
    yield tag("h2", "Why inputs were left out")
    most = max(reason.inputs for reason in found)
    sums = 0
    for outcome in dict.fromkeys(reason.outcome for reason in found):
        rows = [
            (reason.reason or "the same pixels, or nearly", reason.inputs, Bar(reason.inputs / most), some)
            for reason, some in zip(found, examples, strict=True)
            if reason.outcome == outcome
        ]
        total = sum(row[1] for row in rows)
        sums += total
        yield tag("h3", f"{outcome}: {total:,}")
        yield table(("reason", "inputs", "", how), rows)
    if rest.others:
        yield tag("p", f"{rest.others:,} more inputs have {rest.kinds:,} rarer kinds of reasons.")
    assert sums + rest.others == len(contents.accounting) - len(contents.samples)


def kept(contents: Contents) -> Iterator[Markup]:
    """The contact sheet of samples."""
    classes = contents.manifest["classes"]
    names = ["width", "height", *(["label"] if classes is not None else [])]
    figures = []
    for shown in contents.kept:
        width, height, *label = (contents.samples.table[name][shown.sample].as_py() for name in names)
        words = f"{shown.sample:,}: {width} x {height}"
        said = classes[label[0]] if label and label[0] is not None else ""
        caption = tag("figcaption", words, *([Markup("<br>"), said] if said else []))
        figures.append(tag("figure", image(shown.picture, f"sample {shown.sample}"), caption))
    yield tag("h2", "Samples")
    yield tag("p", f"{len(figures):,} of {len(contents.samples):,}, drawn by their ids: number, size", class_="faint")
    yield tag("div", *figures, class_="sheet")


def sizes(contents: Contents) -> Iterator[Markup]:
    """Widths and heights."""
    samples = contents.samples.table
    found = tally(samples, ("width", "height"), _MOST)
    yield tag("h2", "Sizes")
    shown = _counted(("width x height, pixels",), [(f"{w:,} x {h:,}", count) for w, h, count in found.rows], found)
    if len(found.rows) > 1:
        every = samples.select(["width", "height"]).group_by(["width", "height"]).aggregate([([], "count_all")])
        columns = [every[name].to_numpy().astype(np.float64) for name in ("width", "height", "count_all")]
        chart = map_of_sizes(*columns, description="Widths and heights of the samples")
        note = tag("figcaption", "Stronger: more samples. Dashed: squares.")
        shown = tag("div", tag("figure", chart, note), shown, class_="beside")
    yield shown


def levels(contents: Contents) -> Iterator[Markup]:
    """Bits, black and white, and how bright the pictures are."""
    samples = contents.samples.table
    found = tally(samples, ("bit_depth", "low", "high"), _MOST)
    rows = [(f"{bits} bits, black {low:,}, white {high:,}", count) for bits, low, high, count in found.rows]
    yield tag("h2", "Levels")
    tables = [_counted(("as stored",), rows, found)]
    if _says(samples, "stored_bits"):
        found = tally(samples, ("stored_bits",), _MOST)
        rows = [(str(bits) if bits else "not said", count) for bits, count in found.rows]
        tables.append(_counted(("bits that a DICOM header declares",), rows, found))
    yield tag("div", *tables, class_="beside")
    bright = contents.brightness
    if not bright.means:
        return
    across = "level (0 black, 255 white)"
    charts = (
        (bright.levels, "pixels, %", "Levels of all pixels, each sample with the same weight."),
        (bright.mean_levels, "samples, %", "Mean level of each sample."),
    )
    figures = []
    for shares, up, words in charts:
        chart = histogram(shares, bright.edges, across=across, up=up, description=words)
        figures.append(tag("figure", chart, tag("figcaption", words)))
    note = f"Of {len(bright.means):,} samples drawn by their ids, as training shows them: within black and white."
    yield tag("p", note, class_="faint")
    yield tag("div", *figures, class_="beside")


def devices(contents: Contents) -> Iterator[Markup]:
    """What headers say of how pictures were made."""
    samples = contents.samples.table
    tables = []
    for name, title in _HEADERS.items():
        if _says(samples, name):
            found = tally(samples, (name,), _MOST)
            rows = [("not said" if value is None else value, count) for value, count in found.rows]
            tables.append(_counted((title,), rows, found))
    if tables:
        yield tag("h2", "Devices")
        yield tag("div", *tables, class_="beside")


def labels(contents: Contents) -> Iterator[Markup]:
    """Classes and splits, one against the other."""
    classes, samples = contents.manifest["classes"], contents.samples.table
    if classes is None:
        return
    of_pair = {(label, split): count for label, split, count in _labels_and_splits(samples)}
    columns = sorted({split for _, split in of_pair})
    found = []
    for number, name in [*enumerate(classes), (None, "no label")]:
        counts = [of_pair.get((number, split), 0) for split in columns]
        found.append((number is None, -sum(counts), name, counts))
    *rows, unlabelled = sorted(found)  # classes by their samples, then what has none
    first, rest = rows[:_CLASSES], rows[_CLASSES:]
    if rest:
        sums = np.sum([counts for *_, counts in rest], axis=0).tolist()
        first.append((False, -sum(sums), f"{len(rest):,} more classes", sums))
    first += [unlabelled] if unlabelled[1] else []
    total = np.sum([counts for *_, counts in first], axis=0).tolist()
    assert sum(total) == len(samples)
    most = max(-minus for _, minus, *_ in first)
    shown = [(name, *counts, -minus, Bar(-minus / most)) for _, minus, name, counts in first]
    head = ("class", *columns, "all splits", "")
    yield tag("h2", "Labels and splits")
    yield table(head, shown, sums=("all samples", *total, sum(total)))


def _labels_and_splits(samples: pa.Table) -> list[tuple[int | None, str, int]]:
    """How many samples have each label and split; splits beyond a few are one."""
    split = pc.fill_null(samples["split"], "no split")
    some = pa.array([name for name, _ in tally(pa.table({"split": split}), ("split",), _SPLITS).rows])
    split = pc.if_else(pc.is_in(split, some), split, "other splits")
    return tally(pa.table({"label": samples["label"], "split": split}), ("label", "split"), len(samples)).rows


def groups(contents: Contents) -> Iterator[Markup]:
    """Patients, lesions and the like."""
    samples = contents.samples.table
    if not _says(samples, "group"):
        return
    split = samples["split"] if "split" in samples.schema.names else pa.nulls(len(samples), pa.string())
    pairs = pa.table({"group": samples["group"], "split": split}).filter(pc.is_valid(samples["group"]))
    of_pair = pairs.group_by(["group", "split"]).aggregate([([], "count_all")])
    sizes = np.unique(of_pair["group"].to_numpy(), return_counts=True)[1]
    of_group = pc.value_counts(pairs["group"].combine_chunks()).field("counts").to_numpy()
    groups = dict(tally(of_pair, ("split",), _MOST).rows)
    rows = [
        ("no split" if name is None else name, groups[name], images)
        for name, images in tally(pairs, ("split",), _MOST).rows
        if name in groups
    ]
    yield tag("h2", "Groups")
    yield tag(
        "p", f"Groups, such as patients: {len(sizes):,}. Samples that belong to none: {len(samples) - len(pairs):,}."
    )
    if across := int((sizes > 1).sum()):
        yield tag(
            "p", f"Groups in more than one split: {across:,}. Scores on one of these splits flatter.", class_="warn"
        )
    tables = [table(("split", "groups", "samples"), rows), _bins("samples of a group", "groups", of_group)]
    yield tag("div", *tables, class_="beside")


def duplicates(contents: Contents) -> Iterator[Markup]:
    """Pictures that are there more than once."""
    copies = contents.copies
    pairs = contents.manifest.get("near_duplicates")
    if not len(copies.of_samples) and pairs is None:
        return
    yield tag("h2", "Duplicates")
    said = f"Inputs with the same pixels as a sample: {len(copies.exact):,}; with nearly the same: {len(copies.near):,}"
    yield tag("p", f"{said}. Samples that they repeat: {len(copies.of_samples):,}.")
    if pairs is not None:
        yield tag("p", f"Near-duplicates were looked for; pairs that were found: {pairs:,}.")
    if len(copies.of_samples):
        yield tag("div", _bins("copies beside the sample", "samples", copies.of_samples), class_="beside")


def making(contents: Contents) -> Iterator[Markup]:
    """The options and the files."""
    manifest = contents.manifest
    shards = manifest["shards"]
    rows = [
        (f"--{name.replace('_', '-')}", "none" if value is None else str(value))
        for name, value in manifest["made_with"].items()
    ]
    files = [
        ("samples", f"{manifest['samples']:,}"),
        ("shards", f"{len(shards):,}, {sum(shard['bytes'] for shard in shards) / _MIB:,.1f} MiB"),
        ("encoded as", ", ".join(f"{name} ({count:,})" for name, count in sorted(manifest["formats"].items()))),
        ("fingerprint of the key", tag("code", manifest["key"])),
        ("checksum of the samples' table", tag("code", manifest["table"]["sha256"], class_="long")),
    ]
    yield tag("h2", "How it was made")
    yield tag("div", table(("option", "value"), rows), table(("archive", ""), files), class_="beside")


def _says(samples: pa.Table, name: str) -> bool:
    return name in samples.schema.names and samples[name].null_count < len(samples)


def _counted(head: tuple[str], rows: list[tuple[str, int]], found: Tally) -> Markup:
    """Values and how often each is there, with bars, and their sum."""
    if found.others:
        rows = [*rows, (f"{found.kinds:,} others", found.others)]
    most = max(count for _, count in rows)
    body = [(name, count, Bar(count / most)) for name, count in rows]
    sums = ("all samples", sum(count for _, count in rows)) if len(rows) > 1 else ()
    return table((*head, "samples", ""), body, sums=sums)


def _bins(of: str, what: str, counts: np.ndarray) -> Markup:
    rows = binned(counts)
    most = max(count for _, count in rows)
    return table((of, what, ""), [(words, count, Bar(count / most)) for words, count in rows])
