"""What a run on many GPUs will take, computed from the rates of one: hours, storage, network, scaling efficiency.

Every number comes with its formula, so that a reader can put in numbers of their own.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from fastfgssl.config.schema import Config
from fastfgssl.doctor.advice import figures
from fastfgssl.loss import bytes_to_send
from fastfgssl.objectives.fgssl import HeadsUpdate
from fastfgssl.runtime.errors import UserError

LINK = 50e9
"""Bytes a second that a GPU sends, if the user does not say: one 400 Gbit/s port for each, as in an NDR cluster."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is planned; each field is a key of `--plan`."""

    gpus: int
    images: float
    """Of the archive."""
    epochs: float
    link: float = LINK


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device, and the part of a machine that feeds it, was measured to do."""

    batch: int
    """Images of a step of each device; it stays as it is, so the global batch grows with the devices."""
    step: float
    """Images/s of the training step alone."""
    graph: float
    """Images/s of the whole input path."""
    decode: float
    """Images/s of decoding alone: what the input path could come to with these cores."""
    bytes_per_image: float
    """Of the archive."""
    shares_cores: bool
    """Whether step and input path compute on the same cores: then their times add up."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What ranks exchange for one update."""

    gradients: int
    """Bytes of the gradients of the parameters that it trains."""
    heads: int
    """Losses, each of which gathers embeddings."""


class Line(NamedTuple):
    name: str
    text: str
    """The number, with its unit."""
    formula: str
    value: float


def parse_request(words: Sequence[str]) -> Request:
    """Reads `gpus=64 images=50e6 epochs=100 link=50e9`. Raises `UserError` for anything else."""
    known = {field.name: field for field in fields(Request)}
    values: dict[str, float] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(f'{name}=' for name in known)}"
            raise UserError(f"--plan {word!r}: {hint}")
        if key in values:
            raise UserError(f"--plan {key} is given twice; keep one of the two")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0) or (key == "gpus" and not number.is_integer()):
            must = "an integer" if key == "gpus" else "a number"
            raise UserError(f"--plan {key} = {text!r}: must be {must} greater than 0")
        values[key] = int(number) if key == "gpus" else number
    missing = [name for name in ("gpus", "images", "epochs") if name not in values]
    if missing:
        raise UserError(f"--plan needs {' '.join(f'{name}=...' for name in missing)}, as in {EXAMPLE}")
    return Request(**values)


EXAMPLE = "--plan gpus=64 images=50e6 epochs=100"


def exchanges(updates: Sequence[HeadsUpdate], config: Config) -> list[Exchange]:
    """What each update sends, from the parameters that it trains and the type that their gradients are sent in."""
    element = getattr(torch, config.train.gradient_dtype).itemsize
    return [
        Exchange(
            gradients=element * sum(weight.numel() for weight in update.parameters()),
            heads=len(update.stages),
        )
        for update in updates
    ]


def make_plan(request: Request, device: Device, updates: Sequence[Exchange], config: Config) -> list[Line]:
    """The plan's lines, each computed from those before it and from what was measured."""
    w, b, f = request.gpus, device.batch, config.model.embedding_dim
    if device.shares_cores:
        rate, how = 1 / (1 / device.step + 1 / device.graph), "1 / (1 / step + 1 / input): they share the cores"
    else:
        rate, how = min(device.step, device.graph), "min(step, input): they overlap"
    compute = b / rate
    of_a_rank = sum(update.gradients for update in updates)
    gradients = 2 * (w - 1) / w * of_a_rank
    # embeddings leave autocast in its 16 bits, but for the one loss over micro-batches
    is_cached = config.loss.cache and config.train.accumulate > 1
    element = 4 if config.train.precision == "float32" or is_cached else 2
    heads = sum(update.heads for update in updates)
    sums = heads * 4 * (1 + 4 * f)
    gathered = heads * bytes_to_send(w * b, f, w, element) - sums
    embeddings = (w - 1) * gathered + 2 * (w - 1) / w * sums
    sent = gradients + embeddings
    exchange = sent / request.link
    apart, overlapped = compute / (compute + exchange), compute / max(compute, exchange)
    speed = w * rate * apart
    steps = request.images * request.epochs / (w * b)
    hours = request.images * request.epochs / speed / 3600
    storage = speed * device.bytes_per_image
    return [
        Line(
            "images/s of a GPU",
            figures(rate),
            f"{how}; step {figures(device.step)}, input {figures(device.graph)} (decoding {figures(device.decode)})",
            rate,
        ),
        Line("global batch", f"{w * b:,}", f"gpus x {b} images of a GPU, as measured", w * b),
        Line(
            "steps",
            f"{steps:,.0f}",
            f"images x epochs / global batch = {request.images:,.0f} x {request.epochs:g} / {w * b:,}",
            steps,
        ),
        Line("compute of a step", _seconds(compute), f"images of a GPU / images/s = {b} / {figures(rate)}", compute),
        Line(
            "gradients of a step",
            _bytes(gradients),
            f"for each update 2 (W - 1) / W x bytes of its gradients; {len(updates)} updates, {_bytes(of_a_rank)},"
            f" W = {w}",
            gradients,
        ),
        Line(
            "embeddings of a step",
            _bytes(embeddings),
            f"(W - 1) x {heads} heads x 2 x {b} x {f} x {element} bytes, gathered,"
            f" + 2 (W - 1) / W x {_bytes(sums)} of sums of columns",
            embeddings,
        ),
        Line("sent by each GPU a step", _bytes(sent), "gradients + embeddings", sent),
        Line(
            "exchange of a step",
            _seconds(exchange),
            f"sent / link of {request.link:g} bytes/s (set link=...)",
            exchange,
        ),
        Line("scaling efficiency, at least", f"{apart:.1%}", "compute / (compute + exchange): nothing overlaps", apart),
        Line(
            "scaling efficiency, at most",
            f"{overlapped:.1%}",
            "compute / max(compute, exchange): all overlaps",
            overlapped,
        ),
        Line("images/s of all GPUs", figures(speed), "gpus x images/s of a GPU x efficiency (the lower)", speed),
        Line("time", f"{figures(hours)} h", "images x epochs / images/s of all GPUs / 3600", hours),
        Line(
            "storage bandwidth",
            f"{_bytes(storage)}/s",
            f"images/s of all GPUs x {_bytes(device.bytes_per_image)} an image; {_bytes(storage / w)}/s a GPU",
            storage,
        ),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.4g} {unit}"
        count /= 1000
    raise AssertionError


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1000:,.3g} ms"
