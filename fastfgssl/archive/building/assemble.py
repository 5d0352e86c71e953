"""From parts to an archive in its place: who becomes which sample, the shards, the tables, the names beside the key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building import tables
from fastfgssl.archive.building.accounting import (
    DUPLICATE,
    FILTERED,
    OUTCOMES,
    QUARANTINED,
    SKIPPED,
    UNREADABLE,
    WRITTEN,
)
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.ids import Ids
from fastfgssl.archive.building.inputs import Input, read_inputs, write_inputs
from fastfgssl.archive.building.members import Members
from fastfgssl.archive.building.plan import DonePart, Inputs, gather, number_samples, shard_bounds
from fastfgssl.archive.building.publish import Place
from fastfgssl.archive.building.sample_labels import labels_of_samples
from fastfgssl.archive.building.shard_plans import ShardPlans, write_shards
from fastfgssl.archive.building.shards import keep_only
from fastfgssl.archive.building.tasks import OnProgress
from fastfgssl.archive.building.thumbnails import Alike
from fastfgssl.archive.labels.assignment import Labels
from fastfgssl.archive.labels.facts import EntryLabels, share
from fastfgssl.archive.listing import Listing
from fastfgssl.archive.options import MIB, PrepareOptions
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.left_out import gather_left_out, read_left_out, write_left_out
from fastfgssl.archive.report.page import write_private_report, write_report
from fastfgssl.archive.report.samples import Samples
from fastfgssl.archive.report.sheets import Names
from fastfgssl.archive.summary import Summary
from fastfgssl.runtime.environment import available_cores
from fastfgssl.runtime.errors import UserError

_ROWS = 1 << 14  # of a table that are Python objects at a time


def assemble(
    options: PrepareOptions,
    place: Place,
    base: Base,
    ids: Ids,
    labels: Labels | None,
    known: np.ndarray,
    parts: Sequence[DonePart],
    summary: Summary,
    on_progress: OnProgress,
) -> None:
    """Makes an archive of `base` and of all entries that are not `known` (bool, a row of the listing each).

    Fills in `summary`. Raises UserError if there would be no sample in it.
    """
    listing = ids.listing
    is_image = np.zeros(len(listing), bool)
    is_image[listing.images] = True
    inputs = gather(listing, parts, np.flatnonzero(~known & ~is_image))
    assert np.array_equal(np.unique(inputs.row), np.flatnonzero(~known)), "an input has no row"
    accounted, settled = base.accounted(ids.of(np.flatnonzero(~known)))
    names = ids.of(inputs.row)
    if settled:  # files of several images, of which some had failed
        known_by = zip(names.to_pylist(), pc.fill_null(inputs.table["part"], "").to_pylist(), strict=True)
        inputs.keep(np.array([one not in settled for one in known_by], bool))
        names = ids.of(inputs.row)
    alike = _find_alike(options, place, base, inputs, parts, on_progress)
    pairs = alike.pairs if alike else []
    summary.near_duplicates = _names_of(pairs, options, listing, base, inputs)
    number_samples(
        inputs,
        base.num_samples,
        base.pixels(),
        keep_duplicates=options.duplicates == "keep",
        drop=pairs if options.near_duplicates == "drop" else (),
    )
    written = inputs.outcome == WRITTEN
    if not written.any() and not base.num_samples:
        _write_names(options, place, listing, base, inputs, names)
        says = f"{options.inputs_file} says"
        if not place.holds_archive():  # whose report stays
            _report_nothing(options, ids, inputs, names, parts)
            says = f"{options.inputs_file} and {options.report_file} say"
        place.leave()
        filtered = int((inputs.outcome == FILTERED).sum())
        but = f", and {filtered} were left out by filters such as --min-side" if filtered else ""
        raise UserError(f"none of the {len(listing.images)} images is usable{but}; {says} why")

    said = labels.said if labels else None
    if said is not None:
        summary.contradictions = _share_labels(listing, said, inputs)
    classes = _classes(options, base, labels)
    grouped = pairs if options.near_duplicates == "group" else ()
    of_samples, summary.apart = labels_of_samples(options, base, inputs, names, said, grouped, ids.key)
    place.begin_archive()
    base.link_shards(place.archive)
    sizes = inputs.table["size"].filter(pa.array(written)).to_numpy()
    bounds = shard_bounds(sizes, int(options.shard_size * MIB))
    members = None
    if options.members is not None:
        new, of_new = pa.array(written), inputs.table.filter(pa.array(written))
        members = Members(options.members, names.filter(new), of_new, of_samples, classes)
    plans = ShardPlans(base, inputs, parts, bounds, members)
    shards = base.shards + write_shards(options, place, plans, on_progress)
    keep_only(place.archive, shards)
    columns = tables.sample_columns(inputs, names, bounds, plans.offsets(), len(base.shards))
    table = tables.write_samples(place.archive, base, columns, of_samples, bounds, classes)
    accounting = pa.concat_tables([accounted, _accounting(listing, inputs, names)]).unify_dictionaries()
    manifest = tables.manifest_of(
        base,
        inputs,
        shards=shards,
        table=table,
        accounting=(tables.write_accounting(place.archive, accounting), accounting),
        classes=classes,
        made_with=options.of_archive(),
        key=ids.key,
        near_duplicates=len(pairs) if alike else None,
    )
    contents = Contents(accounting, Samples(place.archive, shards, table[1]), manifest)
    tables.write_manifest(place.archive, manifest | {"report": write_report(place.archive, contents)})
    _write_names(options, place, listing, base, inputs, names)
    shown_before = read_left_out(options.left_out_file) if base.path is not None else []
    if alike:
        alike.keep(options.thumbnails_file, inputs)
        summary.unlike = alike.unreadable
    kept = pairs if options.near_duplicates != "drop" else ()
    left_out = gather_left_out(shown_before, contents, inputs, parts, ids.of, kept)
    write_left_out(options.left_out_file, left_out)
    write_private_report(options.report_file, options.inputs_file, contents, left_out)
    place.publish()
    _fill_in(summary, listing, inputs, manifest)
    if options.split is not None:
        summary.splits = Counter(table[1]["split"].to_pylist())


def _find_alike(
    options: PrepareOptions,
    place: Place,
    base: Base,
    inputs: Inputs,
    parts: Sequence[DonePart],
    on_progress: OnProgress,
) -> Alike | None:
    if options.near_duplicates is None:
        return None
    workers = options.workers or available_cores()
    return Alike(
        base, inputs, parts, kept=options.thumbnails_file, folder=place.parts, workers=workers, on_progress=on_progress
    )


def _names_of(
    pairs: Sequence[tuple[int, int, float]], options: PrepareOptions, listing: Listing, base: Base, inputs: Inputs
) -> list[str]:
    """Where the images of pairs lie, those of samples that were there already as the table of inputs has it."""
    held = {one: base.id_and_group(base.num_samples + one)[0] for one, _, _ in pairs if one < 0}
    known = Names(options.inputs_file, {(id, "") for id in held.values()})
    first = (known.path((held[one], "")) if one < 0 else listing.where(inputs.row[one]) for one, _, _ in pairs)
    return [f"{one} and {listing.where(inputs.row[two])}" for one, (_, two, _) in zip(first, pairs, strict=True)]


def _accounting(listing: Listing, inputs: Inputs, names: pa.Array) -> pa.Table:
    return tables.new_accounting(inputs, names, listing.table["size"].to_numpy()[inputs.row])


def _report_nothing(
    options: PrepareOptions, ids: Ids, inputs: Inputs, names: pa.Array, parts: Sequence[DonePart]
) -> None:
    """Writes the report for the owner of the names, of inputs that gave no sample."""
    accounting = _accounting(ids.listing, inputs, names)
    contents = Contents(accounting, Samples(options.out, [], pa.table({})), {"shards": []})
    left_out = gather_left_out([], contents, inputs, parts, ids.of, ())
    write_private_report(options.report_file, options.inputs_file, contents, left_out)


def _classes(options: PrepareOptions, base: Base, labels: Labels | None) -> list[str] | None:
    """Of the archive, in the order of their numbers; None if nobody names any."""
    if base.classes is None and labels is None:
        return None
    old, found = base.classes or [], set(labels.classes if labels else ())
    # a number that a shard holds must stay what it is
    return old + sorted(found - set(old)) if options.members == "cls" else sorted({*old, *found})


def _share_labels(listing: Listing, said: EntryLabels, inputs: Inputs) -> list[str]:
    """Lets samples know what is said of the images that repeat them; returns what to tell where labels differ."""
    written, repeats = (np.flatnonzero(inputs.outcome == outcome) for outcome in (WRITTEN, DUPLICATE))
    first = int(inputs.sample[written[0]]) if len(written) else 0
    repeats = repeats[inputs.sample[repeats] >= first]  # not those of samples that were there before
    originals = inputs.row[written[inputs.sample[repeats] - first]]
    return [
        f"{listing.where(found.first)} and {listing.where(found.other)} are the same picture, with another {found.what}"
        for found in share(said, originals, inputs.row[repeats])
    ]


def _write_names(
    options: PrepareOptions, place: Place, listing: Listing, base: Base, inputs: Inputs, names: pa.Array
) -> None:
    """Writes the table of inputs beside the key: what it held before, and all that is new.

    What it held of an archive that is replaced goes; what is of none that is known here stays: under one key there may
    be archives of one name in several folders, and nothing else leads from their ids to files.
    """

    def old() -> Iterator[list[str]]:
        if not options.inputs_file.exists():
            return  # of a million inputs the sets below take 200 MB
        again = set(names.to_pylist())
        known = set(base.accounting["id"].to_pylist())
        replaced = set(place.replaced_ids())
        for row in read_inputs(options.inputs_file):
            failed = len(row) > 3 and row[3] in (OUTCOMES[QUARANTINED], OUTCOMES[UNREADABLE])
            if row and row[0] not in replaced and not (row[0] in again and (failed or row[0] not in known)):
                yield row

    def new() -> Iterator[Input]:
        for begin in range(0, len(inputs.row), _ROWS):
            part = slice(begin, begin + _ROWS)
            columns = (names[part], *(inputs.table[name][part] for name in ("part", "reason")))
            where = listing.places(inputs.row[part])
            outcomes = inputs.outcome[part].tolist()
            for path, outcome, *texts in zip(where, outcomes, *(c.to_pylist() for c in columns), strict=True):
                id, of_file, reason = (text or "" for text in texts)
                yield Input(id, of_file, path, OUTCOMES[outcome], reason)

    write_inputs(options.inputs_file, old(), new())


def _fill_in(summary: Summary, listing: Listing, inputs: Inputs, manifest: dict) -> None:
    summary.samples, summary.added = manifest["samples"], int((inputs.outcome == WRITTEN).sum())
    summary.labelled, summary.shards = manifest["labelled"], len(manifest["shards"])
    summary.bytes = sum(shard["bytes"] for shard in manifest["shards"])
    summary.duplicates = int((inputs.outcome == DUPLICATE).sum())
    summary.unreadable = int((inputs.outcome == UNREADABLE).sum())
    summary.changed, summary.notes = inputs.changed["changes"], inputs.changed["notes"]
    first = dict(inputs.examples)
    read = (inputs.part >= 0) | (inputs.outcome == QUARANTINED)
    read &= np.isin(inputs.outcome, (FILTERED, QUARANTINED, SKIPPED, UNREADABLE))
    counters = {SKIPPED: summary.skipped, FILTERED: summary.filtered}
    rows = np.flatnonzero(read)
    kinds = tables.kind_of_reason(inputs.table["reason"].take(pa.array(rows))).to_pylist()
    for at, kind in zip(rows.tolist(), kinds, strict=True):
        counted = counters.get(int(inputs.outcome[at]), summary.quarantined)
        counted[kind] += 1
        first.setdefault(kind, int(inputs.row[at]))
    summary.examples = {what: listing.where(row) for what, row in first.items()}
