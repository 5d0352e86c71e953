"""From sources to an archive: list, make parts, plan, write shards, publish.

Workers do all that costs time, a chunk of files or a shard at once, and write what they make to the disk under a name
that follows from what it is made of. So a run that was killed goes on where it was, and several machines may share the
work; and the finished archive is the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import numpy as np

from fastfgssl.archive.building.assemble import assemble
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.ids import Ids
from fastfgssl.archive.building.inputs import COLUMNS, harmless, read_inputs
from fastfgssl.archive.building.keys import key_advice, load_key
from fastfgssl.archive.building.parts import (
    READING,
    UNREADABLE,
    Chunk,
    Part,
    PartMaker,
    PartOptions,
    chunks,
    expect_part_makers,
)
from fastfgssl.archive.building.plan import DonePart
from fastfgssl.archive.building.publish import LISTING, Place
from fastfgssl.archive.building.worker import NO_ITEM, Death
from fastfgssl.archive.building.workers import Pool, Workers, run_in
from fastfgssl.archive.labels.assignment import Labels, labels_of_folders, read_labels
from fastfgssl.archive.labels.presets import PRESETS, read_preset
from fastfgssl.archive.listing import Listing, find_images
from fastfgssl.archive.options import MIB, PrepareOptions
from fastfgssl.archive.sources.base import display
from fastfgssl.archive.summary import Progress, Summary
from fastfgssl.runtime.environment import available_cores, require_alone
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import check_writable

__all__ = ["MIB", "PrepareOptions", "Progress", "Summary", "prepare"]

OnProgress = Callable[[Progress], None]
_LOSSES = 5  # of workers that were at none of a chunk's files, as where a node is lost


def prepare(options: PrepareOptions, on_progress: OnProgress = lambda progress: None) -> Summary:
    """Makes the archive, or adds to it, and calls `on_progress` after each chunk of images.

    Raises UserError for bad input and for whatever hinders the work, such as a full disk or more files that cannot be
    read than `options.max_unreadable`. The archive at `options.out` is then what it was before, as after any other
    exception; what is done is kept beside it, for the same command to go on from.
    """
    start = time.monotonic()
    share = options.share()
    if share is None:  # several tasks of a cluster may each do a share
        require_alone("an archive", advice=", or give each a --part")
    place = Place(options.out, overwrite=options.overwrite)
    if options.engine is None and not options.dry_run:
        expect_part_makers()
    with _cluster(options), place.held(shared=share is not None):
        preset = PRESETS[options.labels_preset] if options.labels_preset else None
        listing = find_images(
            options.sources,
            options.source_options(),
            lists=options.lists,
            advice=preset.advice if preset else "",
            file=None if share else place.work / LISTING,
        )
        labels = None if share else _read_labels(options, listing)
        base = _base(options, place)
        summary = Summary(found=len(listing.images), samples=base.num_samples, other_files=listing.other_files)
        if labels:
            summary.unmatched, summary.missing, summary.classes = labels.unmatched, labels.missing, len(labels.classes)
        known = np.zeros(len(listing), bool)
        if base.path is not None or not options.dry_run:
            ids = Ids(listing, load_key(options.key_file, make=base.path is None))
            base.check_key(ids.key, options.key_file)
            summary.key = key_advice(options.key_file, ids.key)
            if ids.key.made and options.key is None and place.is_mount:
                summary.key += (
                    f"; it lies beside {place.out}, not on the disk there: where a container ends, it is lost"
                )
            if not (share or options.dry_run):
                check_writable(options.inputs_file)  # not after hours
            known = base.known(ids.binary, retry=options.retry)
            summary.known = int(known[listing.images].sum())
            summary.grown = ids.grown(base, known)
            summary.moved = _moved(options, ids, listing.images[known[listing.images]])
        todo = listing.images[~known[listing.images]]
        if not options.dry_run and (share or not known.all()):
            parts = _make_parts(options, options.part_options(base.pixel_hash), place, listing, todo, on_progress)
            if not share:
                assemble(options, place, base, ids, labels, known, parts, summary, on_progress)
        elif not options.dry_run:
            place.leave()
    summary.seconds = time.monotonic() - start
    return summary


def _read_labels(options: PrepareOptions, found: Listing) -> Labels | None:
    if options.labels_preset:
        labels, splits = read_preset(options.labels_preset, found), f"{options.labels_preset} has splits of its own"
    elif options.labels_from:
        labels, splits = labels_of_folders(found), "the folders are those of splits"
    elif options.labels is not None:
        columns = {"image_column": options.image_column, "label_column": options.label_column}
        labels = read_labels(options.labels, found, options.group_column, **columns)
        splits = f"{options.labels} has a column split"
    else:
        return None
    if options.split is not None and (words := labels.said.split.words):
        raise UserError(
            f"{splits} ({', '.join(sorted(words)[:3])}), and --split would draw others: leave out one of them"
        )
    return labels


def _base(options: PrepareOptions, place: Place) -> Base:
    """The archive that is added to; an empty one if there is none, or none that stays."""
    if options.overwrite or not place.holds_archive():
        return Base()
    base = Base(place.out)
    asked, made = options.of_archive(), base.manifest["made_with"]
    for name in (name for name in asked if asked[name] != made.get(name)):
        option, value = f"--{name.replace('_', '-')}", made.get(name)
        raise UserError(
            f"{place.out} was made {f'without {option}' if value is None else f'with {option} {value}'}: add to it in"
            " the same way, or take --overwrite to make it anew"
        )
    return base


def _moved(options: PrepareOptions, ids: Ids, known: np.ndarray) -> list[str]:
    """Of each source the first of the rows `known`, if it lay elsewhere when its archive was made.

    The folder has been moved, or it is another one of the same name, whose images are taken for those by mistake.
    """
    sources = ids.listing.table["source"].to_numpy()[known]
    first = known[np.unique(sources, return_index=True)[1]]
    now = dict(zip(ids.of(first).to_pylist(), ids.listing.places(first), strict=True))
    found = []
    for id, _, then, *_ in filter(lambda row: len(row) == len(COLUMNS), read_inputs(options.inputs_file)):
        if not now:
            break
        path = now.pop(id, None)
        if path is not None and harmless(path) != then:
            found.append(f"{path}, then {then}")
    return found


def _make_parts(
    options: PrepareOptions,
    of_parts: PartOptions,
    place: Place,
    listing: Listing,
    rows: np.ndarray,
    on_progress: OnProgress,
) -> list[DonePart]:
    """Makes the parts of `rows` of the listing that are not there yet, or this process's share of them."""
    made_before = {path.name for path in place.parts.iterdir()}
    share = options.share()
    order: list[tuple[str, np.ndarray]] = []
    progress = Progress(0, len(rows), 0)
    unreadable, example, allowed = 0, "", max(1, int(options.max_unreadable * len(rows)))
    incomplete = set()

    def tasks() -> Iterator[Chunk]:
        nonlocal progress
        for number, chunk in enumerate(chunks(listing, rows, of_parts)):
            if share and number % share[1] != share[0] - 1:
                continue
            order.append((chunk.digest, chunk.rows))
            if chunk.digest in made_before:
                progress = progress._replace(done=progress.done + len(chunk.rows))
            else:
                yield chunk

    part: Part
    with (
        _pool(options, of_parts, place, listing, rows) as pool,
        closing(run_in(pool, tasks(), after_death=_Blame())) as results,
    ):
        for part in results:
            unreadable += part.outcomes["unreadable"]
            example = example or part.example
            if part.outcomes["unreadable"]:
                incomplete.add(part.digest)
            if unreadable > allowed:
                raise UserError(
                    f"{unreadable} of the first {progress.done + part.entries} of {len(rows)} files cannot be read,"
                    f" {example} for one: is a disk or a server away? Nothing was replaced, and what is done is kept:"
                    " once they can be read, the same command goes on (--max-unreadable says how many may be lost)"
                )
            quarantined = progress.quarantined + part.outcomes["quarantined"] + part.outcomes["unreadable"]
            progress = progress._replace(done=progress.done + part.entries, quarantined=quarantined)
            on_progress(progress)
    on_progress(progress)
    return [
        DonePart(place.parts / (digest + UNREADABLE * (digest in incomplete)), of_listing)
        for digest, of_listing in order
    ]


def _cluster(options: PrepareOptions) -> AbstractContextManager[None]:
    if options.engine is None or options.dry_run:
        return nullcontext()
    from fastfgssl.archive.cluster.connection import connected

    return connected(options.ray_address)


@contextmanager
def _pool(
    options: PrepareOptions, of_parts: PartOptions, place: Place, listing: Listing, rows: np.ndarray
) -> Iterator[Pool]:
    """Who makes the parts of `rows` of the listing."""
    maker = PartMaker(place.parts, listing.sources, of_parts)
    limit = options.max_seconds
    if options.engine is None:
        yield Workers(maker, options.workers or available_cores(), max_seconds=limit)
        return
    from fastfgssl.archive.cluster.ray_pool import RayPool
    from fastfgssl.archive.cluster.shared_files import shared_files

    with shared_files(place.parts, listing, rows) as check:
        yield RayPool(maker, workers=options.workers, max_seconds=limit, check=check)


class _Blame:
    """What becomes of a chunk whose worker has ended: it is begun again, without the file that it ended at.

    Unless the worker took too long, the file has a second chance: somebody else may have killed it.
    """

    def __init__(self) -> None:
        self._deaths: Counter[tuple[str, int]] = Counter()

    def __call__(self, death: Death) -> Chunk:
        chunk: Chunk = death.task
        self._deaths[chunk.digest, death.item] += 1
        if death.item == NO_ITEM:
            if self._deaths[chunk.digest, death.item] == _LOSSES:
                raise UserError(
                    f"{death.reason}, and {_LOSSES - 1} times before whoever was at the same"
                    f" {len(chunk.entries)} files, {display(chunk.entries[0].name)} for one: if memory ran out,"
                    " take fewer --workers; the same command goes on"
                )
            return chunk
        if not death.timed_out and self._deaths[chunk.digest, death.item] == 1:
            return chunk
        blame = "quarantined", death.reason
        if death.timed_out and death.stage == READING:
            blame = "unreadable", f"cannot be read: {death.reason}"
        return chunk._replace(blamed=chunk.blamed | {death.item: blame})
