"""The doctor's findings in words, as rows and lines to print, and as an object to keep."""

from __future__ import annotations

from typing import Any

import torch

from fastfgssl.config.schema import Config
from fastfgssl.doctor.advice import as_overrides, describe, figures, sentence
from fastfgssl.doctor.diagnosis import Diagnosis, Examination
from fastfgssl.doctor.machine import Finding
from fastfgssl.doctor.rates import Rate
from fastfgssl.runtime.distributed import World

Row = tuple[str, ...]


def default_ranks(world: World) -> int:
    """The ranks that this machine would run: one a GPU, or one."""
    return torch.cuda.device_count() if world.device.type == "cuda" else 1


def machine_rows(findings: list[Finding], written: float, config: Config) -> list[Row]:
    """Name, what was found, with what to do about it."""
    rows = [(name, f"{text}: {advice}" if advice else text) for name, text, advice in findings]
    return [*rows, ("output", f"{config.output}: takes {written / 1e6:,.0f} MB/s, each 4 MiB waited for")]


def rate_rows(found: Examination, diagnosis: Diagnosis | None = None) -> list[Row]:
    """Part, images/s, noise, milliseconds an image, and what the part is."""
    measured, bench, reading = found.measured, found.bench, found.reading
    side, count = bench.spec.image_size, bench.spec.threads
    threads = f"{count} thread{'s' * (count != 1)}"
    what = {
        "disk": f"{reading.bytes_per_second / 1e6:,.0f} MB/s, one thread, {reading.samples:,} images;"
        f" {_cache(reading.cached)}",
        "reader": "order, view parameters, bytes from memory",
        "decoding": f"alone, {threads}",
        "views": f"resize or crop, distortions and puzzles of {side} px, of decoded images, {threads}",
        "input path": f"reader, decoding and views of {side} px, {threads}, batches of {bench.rows}",
        "training step": f"{found.step_rows} images that are on the device already",
    }
    rates = [measured.storage, measured.reader, measured.decode, measured.views, measured.graph, measured.step]
    rows = [_row(name, rate, text) for (name, text), rate in zip(what.items(), rates, strict=True)]
    if diagnosis is not None and diagnosis.trainer is not None:
        text = f"loader and step together; the step waits {diagnosis.data_wait:.0%} of the time for data"
        rows.append(_row("trainer", diagnosis.trainer, text))
    return [("", "images/s", "noise", "ms an image", ""), *rows]


def _row(name: str, rate: Rate, text: str) -> Row:
    noise = f"{rate.noise:.0%}" if rate.noise else ""
    return (name, figures(rate.value), noise, figures(1e3 / rate.value), text)


def _cache(share: float | None) -> str:
    if share is None:
        return "the file system does not tell whether they came from memory"
    if share < 0.02:
        return "dropped from memory before"
    return f"{share:.0%} were still in memory, so the disk itself may be slower"


def advice_lines(diagnosis: Diagnosis) -> list[str]:
    """The verdict, what was tried, and the overrides to paste."""
    found, measured = diagnosis.examination, diagnosis.examination.measured
    lines = ["", f"bottleneck: {sentence(diagnosis.verdict)}"]
    if diagnosis.verdict.bottleneck == "storage":
        needed = found.reading.bytes_per_sample / measured.expected(measured.graph.seconds)
        lines.append(
            f"  a disk that gives {needed / 1e6:,.0f}"
            " MB/s to one thread would keep up: copy the archive to a local one, or to a machine whose memory holds it"
        )
    lines += [f"tried: {describe(trial)}" for trial in diagnosis.tried]
    if (short := diagnosis.short_side) is not None and short.helps(measured):
        lines.append(
            f"smaller shards: the images have a short side of {short.now} px; prepared with tools/prepare.py"
            f" --short-side {short.pixels} the input path makes {short.ratio:.2g} x the images/s (measured), the whole"
            f" trainer about {1 + short.gain(measured):.3g} x, from {short.bytes_ratio:.0%} of the bytes"
        )
    lines += [
        f"yours to decide, since it alters what is learned: {describe(trial)}"
        for trial in diagnosis.optional
        if trial.helps
    ]
    lines += [f"note: {note}" for note in diagnosis.notes]
    if diagnosis.chosen:
        gains = "; ".join(describe(trial) for trial in diagnosis.chosen)
        lines += [f"what helps most: {gains}", f"paste: {as_overrides(diagnosis.overrides)}"]
    else:
        lines.append("settings: nothing that was tried is faster beyond the noise; leave them as they are")
    return lines


def measured_record(findings: list[Finding], written: float, found: Examination) -> dict[str, Any]:
    measured = found.measured
    rates = {name: value._asdict() for name, value in vars(measured).items() if isinstance(value, Rate)}
    return {
        "machine": [finding._asdict() for finding in findings],
        "reading": found.reading._asdict() | {"bytes_per_second": found.reading.bytes_per_second},
        "writing_bytes_per_second": written,
        "images_per_second": rates,
        "step_rows": found.step_rows,
        "batch": found.bench.spec.batch_size,
        "archive_fits_in_memory": measured.fits_in_memory,
        "shares_cores": measured.shares_cores,
    }


def diagnosis_record(diagnosis: Diagnosis) -> dict[str, Any]:
    short = diagnosis.short_side
    return {
        "verdict": diagnosis.verdict._asdict(),
        "trainer": diagnosis.trainer._asdict() if diagnosis.trainer else None,
        "data_wait": diagnosis.data_wait,
        "tried": [_trial_record(trial) for trial in diagnosis.tried],
        "short_side": short and short._asdict() | {"before": short.before._asdict(), "after": short.after._asdict()},
        "optional": [_trial_record(trial) for trial in diagnosis.optional],
        "notes": diagnosis.notes,
        "overrides": diagnosis.overrides,
        "paste": as_overrides(diagnosis.overrides),
    }


def _trial_record(trial) -> dict[str, Any]:
    record = trial._asdict() | {"before": trial.before._asdict(), "after": trial.after._asdict()}
    return record | {"gain": trial.gain, "helps": trial.helps}
