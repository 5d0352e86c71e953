"""What both pages of a report show: counted once, and drawn once."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.accounting import counts
from fastfgssl.archive.images.preview import preview
from fastfgssl.archive.report.counting import Copies, Reason, Tally, copies, drawn, of_reason, reasons
from fastfgssl.archive.report.samples import Brightness, Samples

_KEPT = 48
"""Samples on the contact sheet."""
_MEASURED = 128
"""Samples whose brightness is counted."""
_REASONS = 60
"""Kinds of reasons that are told apart."""
_EXAMPLES = 3


class Shown(NamedTuple):
    """A sample on a contact sheet."""

    sample: int
    picture: bytes
    """JPEG; empty if it cannot be read."""


class Contents:
    """An archive, as its report sees it: its tables, its manifest without the report, its shards."""

    def __init__(self, accounting: pa.Table, samples: Samples, manifest: dict) -> None:
        self.accounting, self.samples, self.manifest = accounting, samples, manifest
        self.outcomes = counts(accounting)
        assert sum(self.outcomes.values()) == len(accounting), "an input has no outcome"
        assert self.outcomes.get("written", 0) == len(samples), "a sample is no input"

    @cached_property
    def reasons(self) -> tuple[list[Reason], Tally]:
        """Why inputs were left out, and what is beyond the kinds that are told apart."""
        found, rest = reasons(self.accounting, _REASONS)
        told = sum(reason.inputs for reason in found) + rest.others
        assert told == len(self.accounting) - len(self.samples), "an input was left out without a reason"
        return found, rest

    @cached_property
    def examples(self) -> list[list[tuple[str, str]]]:
        """Of each of `reasons` a few inputs: ids and parts."""
        found = []
        for reason in self.reasons[0]:
            which = np.flatnonzero(of_reason(self.accounting, reason.outcome, reason.reason))
            found.append([self.input(row) for row in drawn(self.accounting["id"], which, _EXAMPLES).tolist()])
        return found

    @cached_property
    def copies(self) -> Copies:
        return copies(self.accounting, len(self.samples))

    @cached_property
    def kept(self) -> list[Shown]:
        """Samples for the contact sheet; `brightness` is that of these and some more."""
        shown = []
        for place, sample in enumerate(
            drawn(self.samples.table["id"], np.arange(len(self.samples)), _MEASURED).tolist()
        ):
            pixels = self.samples.pixels(sample)
            if pixels is not None:
                self._brightness.add(pixels)
            if place < _KEPT:
                shown.append(Shown(sample, b"" if pixels is None else preview(pixels, (0, 255))))
        return shown

    @property
    def brightness(self) -> Brightness:
        _ = self.kept
        return self._brightness

    @cached_property
    def _brightness(self) -> Brightness:
        return Brightness()

    def input(self, row: int) -> tuple[str, str]:
        """Id and part of a row of the accounting."""
        return self.accounting["id"][row].as_py(), self.accounting["part"][row].as_py()
