"""Charts as SVG, which scale with the page and take their colours from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastfgssl.archive.report.markup import Markup, tag

_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
_FEW_TICKS = 3


def histogram(shares: np.ndarray, edges: np.ndarray, *, across: str, up: str, description: str) -> Markup:
    """Bars over bins of levels. shares: float [N], up to 1, shown as per cent; edges: float [N + 1].

    across, up: titles of the axes.
    """
    top = _round_up(100 * float(shares.max()))
    ends = float(edges[0]), float(edges[-1])
    frame = _Frame(ends, (0.0, top), log=False, at=np.linspace(*ends, 5).tolist())
    bars = []
    for share, low, high in zip((100 * shares).tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        left, right, height = frame.x(low), frame.x(high), frame.y(0) - frame.y(share)
        title = tag("title", f"{low:g} to {high:g}: {share:.1f} %")
        bars.append(_rectangle(left, frame.y(share), max(0.5, right - left - 1), height, title))
    return frame.drawn(bars, across=across, up=up, description=description)


def map_of_sizes(widths: np.ndarray, heights: np.ndarray, counts: np.ndarray, *, description: str) -> Markup:
    """How many pictures have which width and height: cells on logarithmic axes, stronger for more, squares dashed."""
    low = math.log(min(widths.min(), heights.min()) * 0.95)
    high = math.log(max(widths.max(), heights.max()) * 1.05)
    edges = np.linspace(low, high, 29)
    sizes = (np.log(widths), np.log(heights))
    cells, _, _ = np.histogram2d(*sizes, bins=(edges, edges), weights=counts)
    frame = _Frame((math.exp(low), math.exp(high)), (math.exp(low), math.exp(high)), log=True)
    most = math.log1p(cells.max())
    bounds = np.exp(edges).tolist()
    marks = [_line(frame.x(bounds[0]), frame.y(bounds[0]), frame.x(bounds[-1]), frame.y(bounds[-1]), "guide")]
    for column, row in np.argwhere(cells).tolist():
        left, right = frame.x(bounds[column]), frame.x(bounds[column + 1])
        bottom, top = frame.y(bounds[row]), frame.y(bounds[row + 1])
        number = int(cells[column, row])
        title = tag("title", f"{number:,} of about {bounds[column]:.0f} x {bounds[row]:.0f}")
        opacity = f"{0.25 + 0.75 * math.log1p(number) / most:.2f}"
        marks.append(_rectangle(left, top, right - left, bottom - top, title, fill_opacity=opacity))
    return frame.drawn(marks, across="width, pixels", up="height, pixels", description=description)


class _Frame:
    """The axes of a chart, and where values lie between them."""

    def __init__(
        self, across: tuple[float, float], up: tuple[float, float], *, log: bool, at: Sequence[float] = ()
    ) -> None:
        """at: where the numbers are across, if not at round ones."""
        self._across, self._up, self._log = across, up, log
        self._at = at or ticks(*across, log=log)

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * self._place(value, self._across)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * self._place(value, self._up)

    def drawn(self, marks: Sequence[Markup], *, across: str, up: str, description: str) -> Markup:
        """The whole chart."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        axes = [_line(_LEFT, bottom, right, bottom, "axis"), _line(_LEFT, _TOP, _LEFT, bottom, "axis")]
        for tick in self._at:
            axes.append(_words(self.x(tick), bottom + 14, f"{tick:,.10g}", "middle"))
        for tick in ticks(*self._up, log=self._log):
            axes.append(_line(_LEFT, self.y(tick), right, self.y(tick), "axis"))
            axes.append(_words(_LEFT - 6, self.y(tick) + 4, f"{tick:,.10g}", "end"))
        axes.append(_words((_LEFT + right) / 2, _HEIGHT - 8, across, "middle"))
        middle = (_TOP + bottom) / 2
        axes.append(_words(12, middle, up, "middle", transform=f"rotate(-90 12 {middle:.1f})"))
        view = f"0 0 {_WIDTH} {_HEIGHT}"
        return tag("svg", tag("title", description), *axes, *marks, viewBox=view, role="img", aria_label=description)

    def _place(self, value: float, ends: tuple[float, float]) -> float:
        low, high = ends
        if self._log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, some three to seven of them."""
    if log:
        for steps in _STEPS:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
            if len(found) >= _FEW_TICKS:
                return found
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    if log:  # narrow: whole pixels
        step = max(1.0, round(step))
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step + 1e-6) + 1)]


def _round_up(value: float) -> float:
    """The least round number that is no smaller."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)


def _rectangle(left: float, top: float, width: float, height: float, title: Markup, **others: str) -> Markup:
    places = {"x": f"{left:.1f}", "y": f"{top:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    return tag("rect", title, class_="mark", **places, **others)


def _line(left: float, top: float, right: float, bottom: float, kind: str) -> Markup:
    return tag("line", x1=f"{left:.1f}", y1=f"{top:.1f}", x2=f"{right:.1f}", y2=f"{bottom:.1f}", class_=kind)


def _words(x: float, y: float, words: str, anchor: str, **others: str) -> Markup:
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **others)
