"""Images that both train and score: the same file, or nearly the same picture, in one archive or in two.

Two pictures are compared by small thumbnails of their brightness without its slow changes, of which only structure is
left, by cosine, in all eight orientations. That finds what was encoded, resized or brightened again, flipped or turned
by quarters, and misses some that lost most of their detail. It does not find other angles, crops by more than a few per
cent, or another photograph of the same lesion, for which there are groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.feature_rows import CPU, GPU_QUERIES, QUERIES, FeatureRows, Rows, blocks
from fastfgssl.evaluation.knn import nearest

_SIDE = 32
THRESHOLD = 0.9
"""Cosine from which two pictures count as nearly the same.

Of all pairs among 2,401 dermoscopy images of as many lesions none reaches 0.81, in any orientation. Copies of 201 of
them keep 0.96 or more as JPEG of quality 50, all but 1.5 % keep 0.9 at quality 20, and all but 4 % at a quarter of the
size.
"""
_EXAMPLES = 5
_FLAT = 1e-3  # length of a thumbnail before it is made 1, below which it is rounding


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the scoring samples share with those that train."""

    groups: int
    """Groups on both sides; a patient of two archives is one group if they were prepared under the same key."""
    identical_files: int
    """Scoring images whose file, byte for byte, trains too."""
    near_duplicates: int
    """Scoring images to which one that trains is nearly the same picture; identical files among them."""
    threshold: float
    highest: float | None
    """The cosine of the pair that is most alike."""
    examples: list[tuple[str, str, float]]
    """The pairs that are most alike, of those that count: scoring image, training image, cosine."""


class Thumbnails:
    """Of N samples of an archive in the order in which they were added, float32 [N, T * T], of length 1."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.ids = np.empty(0, np.int64)
        self.rows = FeatureRows()

    def add(self, ids: np.ndarray, images: torch.Tensor) -> None:
        """ids: int64 [B]; images: [B, C, S, S], normalised in any way."""
        self.ids = np.concatenate([self.ids, ids])
        self.rows.append(thumbnails(images))


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """[B, T * T] of images [B, C, S, S], T = 32 or half of S; 0 where a picture is the same all over."""
    side = max(1, min(_SIDE, images.shape[-1] // 2))
    small = functional.adaptive_avg_pool2d(images.float().mean(dim=1, keepdim=True), side)
    structure = small - functional.avg_pool2d(small, 5, stride=1, padding=2, count_include_pad=False)
    structure = structure.flatten(1)
    length = structure.norm(dim=1, keepdim=True)
    return torch.where(length > _FLAT, structure / length.clamp(min=_FLAT), 0.0)


def find_overlap(train: Thumbnails, val: Thumbnails, *, device: torch.device = CPU) -> Overlap:
    """Compares each scoring sample with every one that trains, in blocks, on `device`."""
    most, partner = _most_alike(train.rows, val.rows, device)
    order = np.argsort(-most, kind="stable")[:_EXAMPLES]
    order = order[most[order] >= THRESHOLD]
    pairs = (val, val.ids[order]), (train, train.ids[partner[order]])
    names = (side.archive.columns(ids, ("id",))["id"] for side, ids in pairs)
    return Overlap(
        groups=len(np.intersect1d(_named_groups(train), _named_groups(val))),
        identical_files=_count_identical(train, val),
        near_duplicates=int((most >= THRESHOLD).sum()),
        threshold=THRESHOLD,
        highest=float(most.max()) if len(most) else None,
        examples=[(*pair, float(cosine)) for *pair, cosine in zip(*names, most[order].round(4), strict=True)],
    )


def _most_alike(train: Rows, val: Rows, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of `val` the cosine to the row of `train` that is most alike in any orientation, and its number."""
    cosines, partners = [], []
    for part in blocks(val, (QUERIES if device.type == "cpu" else GPU_QUERIES) // 8):
        side = round(part.values.shape[1] ** 0.5)
        turned = _orientations(part.values.to(device).reshape(-1, side, side)).flatten(2)
        found = nearest(train, turned.flatten(0, 1), 1)
        cosine, orientation = found.similarity.reshape(8, -1).max(dim=0)
        partners.append(found.rows.reshape(8, -1).gather(0, orientation[None])[0].cpu().numpy())
        cosines.append(cosine.cpu().numpy())
    return np.concatenate(cosines), np.concatenate(partners)


def _orientations(pictures: torch.Tensor) -> torch.Tensor:
    """[8, B, S, S] of [B, S, S]: turned by quarters, and each of these mirrored."""
    turned = [torch.rot90(pictures, quarter, (1, 2)) for quarter in range(4)]
    return torch.stack([*turned, *(picture.flip(2) for picture in turned)])


def _named_groups(side: Thumbnails) -> np.ndarray:
    """Groups that labels or headers name; of the others, of one sample each, no other archive could know."""
    if not side.archive.has_column("group"):
        return np.empty(0, np.int64)
    groups = side.archive.columns(side.ids, ("group",))["group"]
    return groups[groups >= 0]


def _count_identical(train: Thumbnails, val: Thumbnails) -> int:
    """Samples of `val` whose bytes are those of one of `train`."""
    keys = []
    for side in (train, val):
        rows = side.archive.columns(side.ids, ("crc32", "size"))
        keys.append(rows["crc32"].astype(np.uint64) << np.uint64(32) ^ rows["size"].astype(np.uint64))
    candidates = np.flatnonzero(np.isin(keys[1], keys[0]))
    by_key: dict[int, list[int]] = {}
    for place in np.flatnonzero(np.isin(keys[0], keys[1][candidates])):
        by_key.setdefault(int(keys[0][place]), []).append(int(train.ids[place]))
    return sum(
        any(
            _bytes(train.archive, other) == _bytes(val.archive, val.ids[place]) for other in by_key[int(keys[1][place])]
        )
        for place in candidates
    )


def _bytes(archive: Archive, sample: int) -> bytes:
    row = archive.columns(np.array([sample]), ("shard", "offset", "size"))
    with archive.shard(int(row["shard"][0])) as path, path.open("rb") as file:
        file.seek(int(row["offset"][0]))
        return file.read(int(row["size"][0]))
