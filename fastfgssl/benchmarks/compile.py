"""Suite `compile`: a training step under torch.compile, beside the eager step and the published loop.

Not part of `step` because compiling takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from fastfgssl.benchmarks.measure import Record, Settings, Suite, memory_of_call, require_close
from fastfgssl.benchmarks.step import SIZES, PlainStep, make_batches, make_config, make_step
from fastfgssl.config.schema import STAGES
from fastfgssl.runtime.distributed import World
from fastfgssl.training.metrics import synchronise


def run(settings: Settings) -> Iterator[Record]:
    """Each schedule; `details` has the seconds of the first step, which compiles, and of an eager first step."""
    suite, device = Suite("compile", settings), settings.device
    side, batch_size, precision, runs, network, name = SIZES[settings.scale]
    batch, plain_batch = make_batches(side, batch_size, device, half=device.type == "cuda")
    world = World.alone(device)
    for schedule in ("joint", "progressive"):
        config = make_config(schedule, network, side, batch_size, precision)
        plain, steps, details = PlainStep(config, device), {}, {}
        for version, compile in (("eager", False), ("compiled", True)):
            steps[version] = step = make_step(replace(config, train=replace(config.train, compile=compile)), world)
            start = time.perf_counter()
            losses = step(batch)
            synchronise(device)
            details[f"seconds_of_first_step_{version}"] = time.perf_counter() - start
            if not compile:
                expected = losses
        for stage in STAGES:
            loss = f"loss_{stage}"
            require_close(f"{schedule}, {loss}", losses[loss], expected[loss], tolerance=0.05)
        if device.type == "cuda":
            for version, step in steps.items():
                details[f"peak_memory_{version}"] = memory_of_call(partial(step, batch), device)
        yield suite.compare(
            f"{schedule}, compiled, {name}, {side} px, batch {batch_size}, {precision}",
            ours=partial(steps["compiled"], batch),
            baseline=("published loop in plain PyTorch", partial(plain, plain_batch)),
            limit=("eager", partial(steps["eager"], batch)),
            items=batch_size,
            unit="images/s",
            runs=runs,
            details=details,
        )
