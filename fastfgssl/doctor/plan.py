"""What a run on many GPUs will take, computed from the rates of one: hours, storage, network, scaling efficiency."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.config.files import list_keys, load_config
from fastfgssl.config.schema import Config
from fastfgssl.doctor.diagnosis import Examination
from fastfgssl.runtime.errors import UserError, nearest
from fastfgssl.training.traffic import StepTraffic, step_traffic

LINK = 50e9
"""Bytes a second that a GPU sends, if the user does not say: one 400 Gbit/s port for each, as in an NDR cluster."""
EXAMPLE = "--plan gpus=64 images=50e6 epochs=100"
_IMAGES = 64  # that are generated where the user has none


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is planned; each field is a word of `--plan`."""

    gpus: int
    images: float
    """In the archive."""
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
    """Encoded size in the archive, the mean."""
    shares_cores: bool
    """Whether step and input path compute on the same cores: then their times add up."""
    updates: int
    """Optimiser updates per batch."""
    traffic: StepTraffic
    """What the device hands to collectives in a step."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the run takes; each number follows from those above it and from what was measured."""

    request: Request
    device: Device
    of_one_gpu: float
    """Images/s."""
    global_batch: int
    steps: float
    compute: float
    """Seconds of a step."""
    gradients: float
    """Bytes that each GPU sends in a step."""
    embeddings: float
    """The same, of the losses."""
    communication: float
    """Seconds that sending both takes."""
    min_efficiency: float
    """Compute over the whole step, if nothing overlaps."""
    max_efficiency: float
    """The same, if all overlaps."""
    of_all_gpus: float
    """Images/s, at the least efficiency."""
    hours: float
    storage: float
    """Bytes a second that are read."""


def make_plan(request: Request, device: Device) -> Plan:
    gpus, images = request.gpus, request.images * request.epochs
    rate = 1 / (1 / device.step + 1 / device.graph) if device.shares_cores else min(device.step, device.graph)
    compute = device.batch / rate
    gradients, embeddings = (part.sent(gpus) for part in device.traffic)
    communication = (gradients + embeddings) / request.link
    efficiency = compute / (compute + communication)
    speed = gpus * rate * efficiency
    return Plan(
        request=request,
        device=device,
        of_one_gpu=rate,
        global_batch=gpus * device.batch,
        steps=images / (gpus * device.batch),
        compute=compute,
        gradients=gradients,
        embeddings=embeddings,
        communication=communication,
        min_efficiency=efficiency,
        max_efficiency=compute / max(compute, communication),
        of_all_gpus=speed,
        hours=images / speed / 3600,
        storage=speed * device.bytes_per_image,
    )


def device_of(found: Examination) -> Device:
    """What was measured of this one."""
    measured, batch, updates = found.measured, found.bench.spec.batch_size, found.step.objective.updates
    return Device(
        batch=batch,
        step=measured.step.value,
        graph=measured.graph.value,
        decode=measured.decode.value,
        bytes_per_image=found.reading.bytes_per_sample,
        shares_cores=measured.shares_cores,
        updates=len(updates),
        traffic=step_traffic(updates, found.bench.config, batch),
    )


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words behind `--plan` that are about the plan, and those that set a key of the configuration."""
    top = {key.name for key in list_keys() if "." not in key.name}
    keys = {word: word.partition("=")[0] for word in words}
    overrides = [word for word in words if "." in keys[word] or keys[word] in top]
    return [word for word in words if word not in overrides], overrides


def parse_request(words: Sequence[str]) -> Request:
    """Reads `gpus=64 images=50e6 epochs=100 link=50e9`. Raises `UserError` for anything else."""
    known = [field.name for field in fields(Request)]
    values: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or key not in known:
            takes = ", ".join(f"{name}=" for name in known)
            raise UserError(f"--plan {word!r}: it takes {takes}{nearest(key, known)}")
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


@contextmanager
def generated_run(overrides: Sequence[str], say: Callable[[str], object]) -> Iterator[Config]:
    """The paper's configuration for who has none yet, on generated images unless `overrides` name an archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [f"data.path={folder / 'archive'}", f"output={folder / 'run'}"]
        if not torch.cuda.is_available():
            words.append("train.precision=float32")  # a CPU takes a minute for a step in the file's float16
        config = load_config("paper", [*words, *overrides])
        if Path(config.data.path) == folder / "archive":
            say("generating images")
            write_phantoms(folder / "images", _IMAGES)
            prepare(PrepareOptions(sources=[folder / "images"], out=folder / "archive"))
        yield config
