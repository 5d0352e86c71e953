"""Scores of a report as Markdown, for the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from fastfgssl.evaluation.metrics import SPECIFICITY
from fastfgssl.evaluation.report import is_external, shown_result
from fastfgssl.runtime.errors import UserError, file_errors

_NAMES = {"auroc": "AUROC", "macro_auroc": "macro AUROC", "macro_f1": "macro F1", "f1": "F1", "top1": "top-1"}
_NAMES |= {
    f"{mean}sensitivity_at_specificity": f"{mean.replace('_', ' ')}sensitivity at a specificity of {SPECIFICITY:g}"
    for mean in ("", "macro_")
}


def read_scores(file: Path) -> dict[str, Any]:
    """A report that `fastfgssl evaluate --json` wrote. Raises `UserError` if it is none."""
    with file_errors("read", file):
        text = file.read_text(encoding="utf-8", errors="replace")
    try:
        report = json.loads(text)
    except ValueError:
        report = None
    results = report.get("results") if isinstance(report, dict) else None
    if not isinstance(results, dict) or not all(isinstance(result, dict) for result in results.values()):
        raise UserError(f"--scores {file}: is no report of scores; `fastfgssl evaluate --json FILE` writes one")
    return {"protocol": "?", "results": {}} | report


def score_lines(report: dict[str, Any]) -> Iterator[str]:
    """A table with a row for each score, a column for each feature; then one with a row for each class."""
    facts = [plain(f"protocol {report['protocol']}")]
    for key, words in (
        ("step", "step {}"),
        ("split", "scored on split {}"),
        ("val_samples", "{} images"),
        ("val_groups", "{} groups"),
        ("fit_samples", f"{{}} images {'of another archive ' if is_external(report) else ''}to train on"),
    ):
        if report.get(key):
            facts.append(plain(words.format(report[key])))
    share = report.get("label_fraction", 1)
    if _is_number(share) and share < 1:
        facts.append(f"{100 * share:g} % of the labels")
    yield ", ".join(facts) + "; in brackets the 95 % interval over groups:\n"
    rows = report["results"] | (report.get("floors") or {})
    metrics = [metric for metric in _metrics(rows.values()) if metric != "C"]  # which is no score
    yield from table(
        ("", *rows), ((_words(metric), *(_score(row, metric) for row in rows.values())) for metric in metrics)
    )
    name = shown_result(report["results"])
    classes = report["results"].get(name, {}).get("by_class")
    if isinstance(classes, dict):
        yield f"\nOf each class by {plain(name)}:\n"
        columns = _metrics(classes.values())
        yield from table(
            ("class", *map(_words, columns)),
            ((of, *(_score(row, metric) for metric in columns)) for of, row in classes.items()),
        )
    overlap = report.get("overlap")
    if isinstance(overlap, dict):
        counts = ", ".join(
            f"{overlap.get(key)} {key.replace('_', ' ')}" for key in ("groups", "identical_files", "near_duplicates")
        )
        yield f"\nShared with the images to train on: {plain(counts)}."
    yield ""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines of a table."""
    head = [plain(column) for column in columns]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(plain, row)) + " |"


_MARKUP = re.compile(r"[\\`*\[\]<>|&~$]|(?<!\w)_|_(?!\w)|(?<=\w):(?=//)|(?<=www)\.|(?<=\w)@(?=\w)", re.IGNORECASE)
"""Of Markdown, HTML in it, formulas and bare links; an underscore within a word is none."""


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is, in a cell of a table too."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _metrics(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the numbers in any of `rows`."""
    found = {name: None for row in rows for name, value in row.items() if _is_number(value)}
    return list(found)


def _score(row: dict[str, Any], metric: str) -> str:
    value = row.get(metric)
    if not _is_number(value):
        return ""
    low, high = (row.get("intervals") or {}).get(metric) or (None, None)
    value = round(value, 9)  # what is 0 but for rounding
    return f"{value:.3g}" if low is None else f"{value:.3g} ({low:.3g} to {high:.3g})"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))
