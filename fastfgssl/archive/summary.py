"""What `prepare` tells: how far it has come, and what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(kw_only=True)
class Summary:
    """What `prepare` did."""

    key: str = ""
    """What to know of the key: that it is new, or that others may read it."""
    found: int = 0
    """Files that may be images."""
    known: int = 0
    """Of them, those that the archive has accounted for already."""
    grown: list[str] = field(default_factory=list)
    """Of these, those that have another size than when they were accounted for."""
    moved: list[str] = field(default_factory=list)
    """Of each source whose known images lay elsewhere when they were accounted for, such an image, then and now."""
    samples: int = 0
    """Of the archive."""
    added: int = 0
    """Of these, the new ones."""
    changed: Counter[str] = field(default_factory=Counter)
    """Images encoded anew, by reason; one may have several."""
    notes: Counter[str] = field(default_factory=Counter)
    """Other things to know of images that are in the archive."""
    duplicates: int = 0
    """Images that repeat another one's pixels."""
    near_duplicates: list[str] = field(default_factory=list)
    """Pairs of images that are nearly the same, of which the second is new."""
    apart: int = 0
    """Such pairs that are in different groups all the same, because the archive had both groups already."""
    unlike: int = 0
    """Samples of the archive that could not be read to be compared."""
    contradictions: list[str] = field(default_factory=list)
    """What labels say differently of such images."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Sound images that settings leave out, by kind of reason; the table of inputs has each."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Images left out, by kind of reason; the table of inputs has each."""
    unreadable: int = 0
    """Files that could not be read."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that were read and rightly hold no image, by kind."""
    other_files: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their name or nature, by suffix, kind, or the pattern that leaves them out."""
    examples: dict[str, str] = field(default_factory=dict)
    """A file for each change, note and kind of reason."""
    labelled: int = 0
    classes: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    """Samples of the archive by split, where splits were drawn."""
    unmatched: list[str] = field(default_factory=list)
    """Rows of the labels that match no image, or several."""
    missing: str = ""
    """Parts of a challenge that are not there, and where to get them."""
    shards: int = 0
    bytes: int = 0
    """Size of all shards."""
    seconds: float = 0.0


class Progress(NamedTuple):
    """How far it has come."""

    done: int
    total: int
    quarantined: int
    stage: str = "images"
    """What is counted: images, or shards."""
