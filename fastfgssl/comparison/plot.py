"""The plot of a comparison: each objective's balanced accuracy with its interval, at equal images and equal seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastfgssl.comparison.results import intervals_over, labels_used
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import write_whole

_BUDGETS = {
    "equal_images": ("equal images", "o", "tab:blue", -0.13),
    "equal_seconds": ("equal seconds", "s", "tab:orange", 0.13),
}


def save_plot(results: dict[str, Any], file: Path) -> None:
    """Draws what `compare` returns as PNG. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("no plot without matplotlib: pip install 'fastfgssl[plot]'") from None
    labels = [row["label"] for row in results["equal_images"]["rows"]]
    figure = Figure(figsize=(7.5, 1.9 + 0.45 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for budget, (name, marker, colour, shift) in _BUDGETS.items():
        if results[budget] is None:
            continue
        trained = [row for row in results[budget]["rows"] if budget == "equal_images" or row["by_seed"][0]["steps"]]
        places = [labels.index(row["label"]) + shift for row in trained]
        values = [100 * row["scores"]["balanced_accuracy"] for row in trained]
        bounds = [[100 * end for end in row["scores"]["intervals"]["balanced_accuracy"]] for row in trained]
        reach = [[v - low for v, (low, _) in zip(values, bounds, strict=True)]]
        reach.append([high - v for v, (_, high) in zip(values, bounds, strict=True)])
        axes.errorbar(values, places, xerr=reach, fmt=marker, color=colour, capsize=3, label=name)
        dots = [(place, seed) for place, row in zip(places, trained, strict=True) for seed in row["by_seed"]]
        shown = [100 * seed["balanced_accuracy"] for _, seed in dots]
        axes.plot(shown, [place for place, _ in dots], "|", color=colour, markersize=9, alpha=0.6)
    floors = results["floors"]
    for floor, style in (("majority", ":"), ("colour", "--")):
        value = 100 * floors[floor]["balanced_accuracy"]
        axes.axvline(value, linestyle=style, color="grey", linewidth=1, label=f"{floor} alone")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    seeds = len(results["seeds"])
    over = intervals_over(results)
    axes.set_xlabel(
        f"balanced accuracy, per cent ({results['protocol']}{labels_used(results)}; 95 % intervals over {over})"
    )
    axes.set_title(
        f"{results['val_samples']} images of {results['val_groups']} groups ({results['split']}),"
        f" {seeds} {'seeds' if seeds > 1 else 'seed'}; bars: each seed",
        fontsize="medium",
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    with file_errors("write", file):
        write_whole(file, lambda opened: figure.savefig(opened, format="png", dpi=150))
