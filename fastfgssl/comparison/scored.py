"""Scores of a network, kept as JSON beside its run, and read again until something changes that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastfgssl import __version__
from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.checkpoint import score_network
from fastfgssl.evaluation.pretrained import Pretrained
from fastfgssl.evaluation.protocols import Protocol
from fastfgssl.evaluation.report import BatchStatistics, Predictions, Report
from fastfgssl.runtime.errors import file_errors
from fastfgssl.runtime.files import write_whole

FEATURES = ("backbone", "all")
"""Those that are compared: of every network the backbone's, and the concatenated heads where it has heads."""


class Scored(NamedTuple):
    report: dict[str, Any]
    """As `Report.record` gives it."""
    predictions: Predictions
    """Of `FEATURES` alone."""


class Scoring(NamedTuple):
    """How every network of a comparison is scored."""

    archive: Archive
    protocol: Protocol
    batch_statistics: BatchStatistics
    device: str
    label_fraction: float = 1.0

    def scored(self, folder: Path, network: Callable[[], Pretrained], identity: dict[str, Any], seed: int) -> Scored:
        """Scores of `network`, made or read; identity: what tells it from any other network, as JSON has it.

        seed: of the draw of labelled images, where `label_fraction` leaves some out.
        """
        drawn: dict[str, Any] = (
            {} if self.label_fraction == 1 else {"label_fraction": self.label_fraction, "seed": seed}
        )
        key = {
            "fastfgssl": __version__,
            "archive": self.archive.fingerprint,
            "protocol": self.protocol,
            "batch_statistics": self.batch_statistics,
            "network": identity,
            **drawn,
        }
        words = "".join(f"-{word}-{value}" for word, value in drawn.items())
        file = folder / f"scores-{self.protocol}-{self.batch_statistics}{words}.json"
        kept = _read(file, key)
        if kept is None:
            report = score_network(
                network(),
                self.archive,
                self.protocol,
                batch_statistics=self.batch_statistics,
                device=self.device,
                **drawn,
            )
            kept = {"key": key, "report": report.record(), "predictions": _plain(report)}
            with file_errors("write", file):
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(file, lambda opened: opened.write(json.dumps(kept).encode()))
        values = kept["predictions"]
        return Scored(
            kept["report"],
            Predictions(
                ids=np.array(values["ids"], np.int64),
                truth=np.array(values["truth"], np.int64),
                groups=np.array(values["groups"], np.int64),
                probabilities={name: np.array(rows, float) for name, rows in values["probabilities"].items()},
            ),
        )


def _plain(report: Report) -> dict[str, Any]:
    predictions = report.predictions
    assert predictions is not None, "matching is not compared"
    by_feature = predictions.probabilities
    return {
        "ids": predictions.ids.tolist(),
        "truth": predictions.truth.tolist(),
        "groups": predictions.groups.tolist(),
        "probabilities": {name: by_feature[name].tolist() for name in FEATURES if name in by_feature},
    }


def _read(file: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What is kept under `key`; None if there is nothing, or it is of something else."""
    if not file.exists():
        return None
    with file_errors("read", file):
        text = file.read_bytes()
    try:
        kept = json.loads(text)
    except ValueError:
        return None
    return kept if isinstance(kept, dict) and kept.get("key") == json.loads(json.dumps(key)) else None
