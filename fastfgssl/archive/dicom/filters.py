"""DICOM images that are not asked for, told by their header before anything is decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastfgssl.archive.dicom.facts import MODALITIES, Flags
from fastfgssl.archive.outcome import Filtered
from fastfgssl.runtime.errors import UserError, nearest, require_one_of

KINDS = ("derived", "localizer", "secondary")
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class HeaderFilters:
    """Which images are left out. Raises UserError for what is no modality or kind."""

    modalities: tuple[str, ...] = ()
    """Codes of those that are taken, such as MG; all if there are none. An image whose header names none is not."""
    leave_out: tuple[str, ...] = ()
    """Of `KINDS`: what ImageType calls derived or localizer; what it calls secondary, and captures of screens or
    films."""

    def __post_init__(self) -> None:
        for code in self.modalities:
            if code not in MODALITIES:
                raise UserError(
                    f"modality {code!r} is none of DICOM's, such as CT, MG or DX{nearest(code, MODALITIES)}"
                )
        for kind in self.leave_out:
            require_one_of("leave-out", kind, (*KINDS, NONE))

    def check(self, modality: str | None, flags: Flags) -> None:
        """Raises Filtered for an image that is left out. A slide's label is, whatever the settings."""
        if flags.beside_slide:
            raise Filtered(flags.beside_slide)
        if self.modalities and modality not in self.modalities:
            raise Filtered(f"modality {modality or 'unknown'}: --modality is {','.join(self.modalities)}")
        if "localizer" in self.leave_out and flags.localizer:
            raise Filtered("localizer: its ImageType says so")
        if "derived" in self.leave_out and flags.derived:
            raise Filtered("derived: its ImageType says so")
        if "secondary" in self.leave_out and flags.secondary_capture:
            raise Filtered("secondary: a capture of a screen or a film")
        if "secondary" in self.leave_out and flags.secondary:
            raise Filtered("secondary: its ImageType says so")


def header_filters(modality: str | None, leave_out: str) -> HeaderFilters:
    """The filters that two options ask for, each a list separated by commas: codes or None; kinds or `none`.

    Raises UserError for what is neither.
    """
    modalities = _words((modality or "").upper())
    if modality is not None and not modalities:
        raise UserError(f"modality must be codes of DICOM such as MG,DX, not {modality!r}")
    kinds = _words(leave_out)
    if not kinds or (NONE in kinds and len(kinds) > 1):
        raise UserError(f"leave-out must be kinds of images or none, not {leave_out!r}")
    return HeaderFilters(modalities=modalities, leave_out=tuple(kind for kind in kinds if kind != NONE))


def _words(text: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(r"[^,\s]+", text))))
