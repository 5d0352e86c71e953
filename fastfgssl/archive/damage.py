"""How much of an archive may be damaged, or cannot be read, before what it is used for is not worth going on with."""

from __future__ import annotations

from collections.abc import Sequence

from fastfgssl.runtime.errors import UserError

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
