"""How much of an archive may be damaged, or cannot be read, before what it is used for is not worth going on with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fastfgssl.runtime.errors import UserError

log = logging.getLogger(__name__)

_NAMED = 3  # shards in a message
ALWAYS_BORNE = 3
"""Bad samples that end nothing, whatever their share: 1 of 50 is no reason, though it is 2 %."""


class UnreadableShard(UserError):
    """A shard that is missing, or is not the one that was stored: its samples cannot be had, those of others can."""


def most_bad(num_samples: int, share: float) -> int:
    """How many of `num_samples` may be bad under data.max_bad_share = `share`; none where that is 0."""
    return max(min(ALWAYS_BORNE, num_samples - 1), int(share * num_samples)) if share else 0


def verdict(bad: int, num_samples: int, share: float, reasons: Sequence[str], listed: str, remedy: str) -> str:
    """In a line why an archive is not used any further; listed: where all of the bad samples are."""
    return (
        f"{bad} of the {num_samples} images are damaged or cannot be read ({100 * bad / num_samples:.3g} %, above"
        f" data.max_bad_share = {share:g}): {'; '.join(reasons)}{listed}; {remedy}"
    )


def problem_of(path: Path, facts: dict) -> UserError | None:
    """What is wrong with the size of a file of the archive."""
    try:
        size = (path / facts["name"]).stat().st_size
    except OSError as error:
        return UserError(f"archive {path} is incomplete: {facts['name']}: {error.strerror}", errno=error.errno)
    if size != facts["bytes"]:
        return UserError(f"archive {path} is damaged: {facts['name']} has {size} bytes, not {facts['bytes']}")
    return None


def require_most_shards(path: Path, manifest: dict, max_bad_share: float) -> None:
    """Raises UserError if more samples than that are in shards that are not all there; else warns of these."""
    shards = manifest["shards"]
    bad = {shard: problem for shard, facts in enumerate(shards) if (problem := problem_of(path, facts))}
    samples, of_all = sum(shards[shard]["samples"] for shard in bad), manifest["samples"]
    if not bad:
        return
    problems = list(bad.values())
    if not max_bad_share:
        raise problems[0]
    told = [str(problem) for problem in problems[:_NAMED]]
    if samples > most_bad(of_all, max_bad_share):
        remedy = "copy it again, or prepare it anew"
        raise UserError(verdict(samples, of_all, max_bad_share, told, "", remedy), errno=problems[0].errno)
    more = f", and {len(bad) - _NAMED} more shards" if len(bad) > _NAMED else ""
    log.warning("%s%s: their %d samples are left out when they are met", "; ".join(told), more, samples)
