"""What `prepare` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator

from fastfgssl.archive.labels.drawing import read_shares
from fastfgssl.archive.manifest import REPORT
from fastfgssl.archive.options import MIB, PrepareOptions
from fastfgssl.archive.summary import Summary


def report_rows(options: PrepareOptions, summary: Summary) -> Iterator[tuple[str, str]]:
    """Rows of a title and what it tells, both in a line."""

    def example(what: str) -> str:
        return f", e.g. {summary.examples[what]}" if what in summary.examples else ""

    done = summary.added + summary.duplicates + summary.filtered.total() + summary.quarantined.total()
    shards = f"{summary.shards:,} shard{'s' * (summary.shards != 1)}"
    if options.part or options.dry_run:
        yield "found", f"{summary.found:,} images, {summary.found - summary.known:,} of them new"
    elif not done:
        yield "nothing new", f"{options.out} has accounted for all {summary.known:,} images that were found"
    else:
        yield "kept", f"{summary.samples:,} images in {shards}, {summary.bytes / MIB:,.1f} MiB"
    if summary.known and done:
        yield "added", f"{summary.added:,} of them; {summary.known:,} images that were found were known"
    if summary.grown:
        have = "file has" if len(summary.grown) == 1 else "files have"
        what = f"{len(summary.grown):,} {have} another size than when added, e.g. {summary.grown[0]}"
        yield "not renewed", f"{what}; --retry takes those that had failed, --overwrite makes all anew"
    if summary.moved:
        what = "known images lay elsewhere when added: if they are others, rename their source"
        yield "elsewhere", f"{what}; e.g. {summary.moved[0]}"
    labels_given = options.labels or options.labels_preset or options.labels_from
    if labels_given and summary.known:
        yield "labels", f"those of the {summary.known:,} known images stay as they were; --overwrite makes all anew"
    if summary.classes and done:
        yield "labels", f"{summary.labelled:,} images have one of {summary.classes:,} classes"
    if summary.splits:
        parts = (f"{name} {summary.splits[name]:,}" for name in read_shares(options.split or ""))
        yield "splits", f"{', '.join(parts)} images, drawn by {options.by}"
    if summary.unmatched:
        where = options.labels or f"{options.labels_preset}'s tables"
        yield "unmatched", f"{len(summary.unmatched):,} rows of {where}, e.g. {summary.unmatched[0]}"
    if summary.missing:
        yield "missing", summary.missing
    if summary.duplicates:
        yield "duplicates", f"{summary.duplicates:,} x left out: the same pixels as another image"
    if pairs := summary.near_duplicates:
        apart = f"; {summary.apart:,} in different groups, which the archive had" if summary.apart else ""
        yield "nearly the same", f"{len(pairs):,} pair{'s' * (len(pairs) != 1)}, e.g. {pairs[0]}{apart}"
    if summary.unlike:
        yield "not compared", f"{summary.unlike:,} samples cannot be decoded any more; --verify tells which"
    if summary.contradictions:
        yield "contradiction", f"{len(summary.contradictions):,} x in the labels, e.g. {summary.contradictions[0]}"
    told = {
        "changed": summary.changed,
        "note": summary.notes,
        "filtered": summary.filtered,
        "quarantined": summary.quarantined,
        "no image": summary.skipped,
    }
    for title, counted in told.items():
        for what, count in counted.most_common():
            yield title, f"{count:,} x {what}{example(what)}"
    if done:
        yield "names", f"{options.inputs_file} has each file and what became of it; keep it and the key to yourself"
        yield "reports", f"{options.out / REPORT} shows what became of them, {options.report_file} with names as well"
    if summary.key:
        yield "key", summary.key
    for kind, count in summary.other_files.most_common(5):
        yield "other files", f"{count:,} x {kind}"
    yield "time", f"{summary.seconds:,.1f} s" + (f", {done / summary.seconds:,.0f} images/s" if done else "")
