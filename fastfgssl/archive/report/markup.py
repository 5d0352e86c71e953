"""HTML, in which every text is escaped but what these functions have made."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastfgssl.archive.building.inputs import visible

_VOID = {"img", "meta"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no script, and nothing from elsewhere
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --faint: #59636e; --line: #d5dae0; --fill: #eef1f4;
  --accent: #2f6fb0; --warn: #a4530a; --warn-fill: #fdf1e2; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e3e7eb; --faint: #9aa4ae; --line: #353c43;
  --fill: #21262b; --accent: #6aa9e6; --warn: #f0b070; --warn-fill: #3a2a17; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .4rem 0; max-width: 46rem; }
.faint, figcaption { color: var(--faint); }
.warn { border: 1px solid var(--warn); background: var(--warn-fill); padding: .6rem .8rem; border-radius: .4rem; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; overflow-wrap: normal; }
td:first-child { min-width: 7rem; }
tr.total td { font-weight: 600; border-bottom: 0; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td.bar { width: 18%; min-width: 3rem; }
td.bar span { display: block; height: .7rem; margin-top: .35rem; min-width: 1px; background: var(--accent); }
code { white-space: nowrap; font: .85em ui-monospace, "DejaVu Sans Mono", monospace; }
code.long { white-space: normal; }
figure { margin: 0; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--faint); }
svg .mark { fill: var(--accent); }
svg .axis { stroke: var(--line); fill: none; }
svg .guide { stroke: var(--faint); stroke-dasharray: 3 3; fill: none; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(98px, 1fr)); gap: .6rem; margin: .6rem 0; }
.sheet.pairs { grid-template-columns: repeat(auto-fill, minmax(204px, 1fr)); }
.sheet figcaption { font-size: .7rem; line-height: 1.3; }
.sheet img, .sheet .none { height: 96px; max-width: 96px; object-fit: contain; background: var(--fill); }
.sheet .none { display: inline-block; width: 96px; font-size: .7rem; padding: .4rem; color: var(--faint); }
.sheet img { width: 96px; outline: 1px solid var(--line); }
.sheet img + img { margin-left: 4px; }
@media (max-width: 40rem) { .bar { display: none; } td:first-child { min-width: 6.2rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .bar span, svg .mark { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  @page { margin: 14mm; } }
"""


class Markup(str):
    """A piece of a page, in which all that came from outside is escaped."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A text as it is read: no part of it is markup, and what nobody would see is spelt out."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(str(value))))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. In names of attributes `_` is `-`, and a `_` behind them nothing (`class_`); None is left out."""
    there = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    given = "".join(f' {key}="{text(value)}"' for key, value in there.items())
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(pieces: Iterable[object], between: str = "") -> Markup:
    """Pieces one after another."""
    return Markup(between.join(text(piece) for piece in pieces))


def image(jpeg: bytes, description: str) -> Markup:
    """A picture within the page; without its bytes, that it cannot be shown."""
    if not jpeg:
        return tag("span", "cannot be shown", class_="none")
    return tag("img", src=Markup(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"), alt=description)


class Bar(NamedTuple):
    """A cell that shows a number's share of the greatest in its column."""

    of_greatest: float


class PerCent(NamedTuple):
    """A cell that shows a share of a whole."""

    share: float

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} %" if self.share >= 0.001 or not self.share else "< 0.1 %"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, sums: Sequence[object] = ()) -> Markup:
    """A table; numbers are set to the right, with thousands apart, as are the names above them. sums: its last row."""
    body = list(rows)
    names = [tag("th", name, scope="col", class_=_class(cell)) for name, cell in zip(head, body[0], strict=True)]
    lines = [_line(row) for row in body] + ([_line(sums, "total")] if sums else [])
    return tag("div", tag("table", tag("thead", tag("tr", *names)), tag("tbody", *lines)), class_="wide")


def _line(row: Sequence[object], kind: str | None = None) -> Markup:
    return tag("tr", *(tag("td", _shown(cell), class_=_class(cell)) for cell in row), class_=kind)


def _class(cell: object) -> str | None:
    return "bar" if isinstance(cell, Bar) else "number" if isinstance(cell, int | PerCent) else None


def _shown(cell: object) -> object:
    if isinstance(cell, Bar):
        return tag("span", style=f"width: {100 * cell.of_greatest:.1f}%")
    return f"{cell:,}" if isinstance(cell, int) else cell


def page(title: str, *content: object) -> bytes:
    """A page that needs nothing beside it."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="robots", content="noindex"),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    body = tag("body", tag("main", *content))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode()
