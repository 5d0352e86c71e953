"""The doctor's findings in words, as rows and lines to print, and as an object to keep."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastfgssl.config.schema import Config
from fastfgssl.doctor.advice import Trial, as_overrides, describe, figures, sentence
from fastfgssl.doctor.diagnosis import Diagnosis, Examination
from fastfgssl.doctor.machine import Finding
from fastfgssl.doctor.plan import Plan
from fastfgssl.doctor.rates import Rate

Row = tuple[str, ...]


class Report(NamedTuple):
    """What came of an examination."""

    record: dict[str, Any]
    """Everything, as an object."""
    tables: dict[str, list[Row]]
    """By title."""
    lines: list[str]
    """What is said below the tables."""


def report_diagnosis(diagnosis: Diagnosis) -> Report:
    rows = rate_rows(diagnosis.examination, diagnosis)
    return Report(diagnosis_record(diagnosis), {"measured": rows}, advice_lines(diagnosis))


def report_plan(found: Examination, plan: Plan) -> Report:
    request, lines = plan.request, plan_lines(plan)
    title = f"plan: {request.gpus} GPUs, {request.images:,.0f} images, {request.epochs:g} epochs"
    return Report(
        record={"plan": [line._asdict() for line in lines]},
        tables={"measured": rate_rows(found), title: [line[:3] for line in lines]},
        lines=["", "note: measured on a CPU; run it on a machine of the kind that is planned for"]
        * found.measured.shares_cores,
    )


def machine_rows(findings: list[Finding], written: float, config: Config) -> list[Row]:
    """Name, what was found, with what to do about it."""
    rows = [(name, f"{text}: {advice}" if advice else text) for name, text, advice in findings]
    return [*rows, ("output", f"{config.output}: takes {written / 1e6:,.0f} MB/s, each 4 MiB waited for")]


def rate_rows(found: Examination, diagnosis: Diagnosis | None = None) -> list[Row]:
    """Part, images/s, noise, milliseconds an image, and what the part is; names of the columns first."""
    measured, bench, reading = found.measured, found.bench, found.reading
    side, count = bench.spec.image_size, bench.spec.threads
    threads = f"{count} thread{'s' * (count != 1)}"
    disk = f"{reading.bytes_per_second / 1e6:,.0f} MB/s, one thread, {reading.samples:,} images"
    views = f"resize or crop, distortions and puzzles of {side} px, of decoded images, {threads}"
    path = f"reader, decoding and views of {side} px, {threads}, batches of {bench.rows}"
    rows = [
        ("", "images/s", "noise", "ms an image", ""),
        _row("disk", measured.storage, f"{disk}; {_cache(reading.cached)}"),
        _row("reader", measured.reader, "order, view parameters, bytes from memory"),
        _row("decoding", measured.decode, f"alone, {threads}"),
        _row("views", measured.views, views),
        _row("input path", measured.graph, path),
        _row("training step", measured.step, f"{found.step_rows} images that are on the device already"),
    ]
    if diagnosis is not None and diagnosis.trainer is not None:
        text = f"loader and step together; the step waits {diagnosis.data_wait:.0%} of the time for data"
        rows.append(_row("trainer", diagnosis.trainer, text))
    return rows


def _row(name: str, rate: Rate, text: str) -> Row:
    noise = f"{rate.noise:.0%}" if rate.noise else ""
    return (name, figures(rate.value), noise, figures(1e3 / rate.value), text)


def _cache(share: float | None) -> str:
    if share is None:
        return "the file system does not say whether they came from memory"
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
            f"smaller shards: the images have a short side of {short.now} px; from fastfgssl prepare --short-side"
            f" {short.pixels} the input path makes {short.ratio:.2g} x the images/s (measured), the whole trainer about"
            f" {1 + short.gain(measured):.3g} x, from {short.bytes_ratio:.0%} of the bytes"
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


class Line(NamedTuple):
    """A number of a plan."""

    name: str
    text: str
    """The number, with its unit."""
    formula: str
    """How it follows from those above it and from what was measured, so that a reader can put in others."""
    value: float


def plan_lines(plan: Plan) -> list[Line]:
    request, device, (gradients, losses) = plan.request, plan.device, plan.device.traffic
    gpus, batch, whole = request.gpus, device.batch, plan.global_batch
    one, all_gpus, compute, sent = plan.of_one_gpu, plan.of_all_gpus, plan.compute, plan.gradients + plan.embeddings
    measured = f"step {figures(device.step)}, input {figures(device.graph)} (decoding {figures(device.decode)})"
    how = (
        "1 / (1 / step + 1 / input): they share the cores" if device.shares_cores else "min(step, input): they overlap"
    )
    length = f"images x epochs / global batch = {request.images:,.0f} x {request.epochs:g} / {whole:,}"
    summed = f"2 (W - 1) / W x {_bytes(gradients.summed)} of {device.updates} updates, W = {gpus} GPUs"
    gathered = f"(W - 1) x {_bytes(losses.gathered)}, gathered, + 2 (W - 1) / W x {_bytes(losses.summed)} of sums"
    link = f"sent / link of {request.link:g} bytes/s (set link=...)"
    read = f"images/s of all GPUs x {_bytes(device.bytes_per_image)} an image; {_bytes(plan.storage / gpus)}/s a GPU"
    apart, overlapped = (
        "compute / (compute + communication): nothing overlaps",
        "compute / max(compute, communication): all overlaps",
    )
    least, most = plan.min_efficiency, plan.max_efficiency
    return [
        Line("images/s of a GPU", figures(one), f"{how}; {measured}", one),
        Line("global batch", f"{whole:,}", f"gpus x {batch} images of a GPU, as measured", whole),
        Line("steps", f"{plan.steps:,.0f}", length, plan.steps),
        Line("compute of a step", _seconds(compute), f"{batch} images of a GPU / {figures(one)} images/s", compute),
        Line("gradients of a step", _bytes(plan.gradients), summed, plan.gradients),
        Line("embeddings of a step", _bytes(plan.embeddings), gathered, plan.embeddings),
        Line("sent by each GPU a step", _bytes(sent), "gradients + embeddings", sent),
        Line("communication of a step", _seconds(plan.communication), link, plan.communication),
        Line("scaling efficiency, at least", f"{least:.1%}", apart, least),
        Line("scaling efficiency, at most", f"{most:.1%}", overlapped, most),
        Line("images/s of all GPUs", figures(all_gpus), "gpus x images/s of a GPU x efficiency (the lower)", all_gpus),
        Line("time", f"{figures(plan.hours)} h", "images x epochs / images/s of all GPUs / 3600", plan.hours),
        Line("storage bandwidth", f"{_bytes(plan.storage)}/s", read, plan.storage),
    ]


def _bytes(count: float) -> str:
    power = min(4, int(math.log10(max(1, count))) // 3)
    return f"{count / 1000**power:,.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1000:,.3g} ms"


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


def _trial_record(trial: Trial) -> dict[str, Any]:
    record = trial._asdict() | {"before": trial.before._asdict(), "after": trial.after._asdict()}
    return record | {"gain": trial.gain, "helps": trial.helps}
