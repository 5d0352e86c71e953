"""A page as a reader finds it: its sections, their tables, their pictures."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page. `unbalanced`: tags that were opened or closed alone."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.unbalanced: list[str] = []
        self._open: list[str] = []
        self._title = ""
        self._texts: list[tuple[str, str]] = []
        self._rows: dict[str, list[list[str]]] = {}
        self._figures: dict[str, list[tuple[list[bytes], str]]] = {}
        self.feed(self.source)
        self.unbalanced += self._open

    def text(self, tag: str) -> list[str]:
        """The texts of all elements of a kind."""
        return [words for found, words in self._texts if found == tag]

    def rows(self, section: str) -> list[list[str]]:
        """The cells of all tables below a heading, up to the next of its kind, without those of their heads."""
        return self._rows[section]

    def figures(self, heading: str) -> list[tuple[list[bytes], str]]:
        """Pictures and caption of each figure with pictures below a heading, up to the next one."""
        return self._figures[heading]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)
            self._texts.append((tag, ""))
        if tag == "tr" and "tbody" in self._open:
            self._rows.setdefault(self._section(), []).append([])
        if tag == "td":
            self._rows[self._section()][-1].append("")
        if tag == "figure":
            self._figures.setdefault(self._heading(), []).append(([], ""))
        if tag == "img":
            data = dict(attrs)["src"].removeprefix("data:image/jpeg;base64,")
            self._figures[self._heading()][-1][0].append(base64.b64decode(data, validate=True))

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not self._open:
            return
        at = max(index for index, (tag, _) in enumerate(self._texts) if tag == self._open[-1])
        self._texts[at] = (self._open[-1], self._texts[at][1] + data)
        if "td" in self._open:
            self._rows[self._section()][-1][-1] += data
        if "figcaption" in self._open:
            pictures, caption = self._figures[self._heading()][-1]
            self._figures[self._heading()][-1] = pictures, caption + data

    def _section(self) -> str:
        return self.text("h2")[-1]

    def _heading(self) -> str:
        return [words for tag, words in self._texts if tag in ("h2", "h3")][-1]
