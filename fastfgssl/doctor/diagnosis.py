"""The doctor's examination: measures every part, judges, and tries the changes that could help where it hurts."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastfgssl.archive.images.image import ImageSettings, TrainingDecoder, prepare_file
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.outcome import Unusable
from fastfgssl.config.schema import Config
from fastfgssl.data.decode import Encoded
from fastfgssl.data.stream import rank_slots, whole_archive
from fastfgssl.doctor.advice import Measured, ShortSide, Trial, Verdict, best_of, judge
from fastfgssl.doctor.disk import ReadRate, measure_reading
from fastfgssl.doctor.rates import BLOCKS, Bench, Rate, in_turns, rate_of
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import cores_per_rank
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.memory import OutOfMemory, available_memory, memory_errors
from fastfgssl.training.step import TrainingStep

Say = Callable[[str], None]

_INPUT_MATTERS = 0.1  # share of the time that the input path takes on shared cores, from which on it is worth a trial
_SHRINK_IMAGES = 32
_MAX_PIXELS = 10**9  # the archive's images have passed prepare's own limit


class Examination(NamedTuple):
    """What was measured, and what it was measured with."""

    bench: Bench
    step: TrainingStep
    measured: Measured
    reading: ReadRate
    step_rows: int
    """Images of the step that was timed; fewer than the rank's batch where that would have taken too long."""


@dataclass
class Diagnosis:
    examination: Examination
    verdict: Verdict
    trainer: Rate | None = None
    """Loader and step together; None where a whole step takes too long to be timed."""
    data_wait: float | None = None
    """Share of that time that the step waited for a batch."""
    tried: list[Trial] = field(default_factory=list)
    """Every change that was measured, whether it helped or not."""
    chosen: list[Trial] = field(default_factory=list)
    """Those that helped, each measured with the ones before it in force."""
    short_side: ShortSide | None = None
    optional: list[Trial] = field(default_factory=list)
    """Changes that were measured and alter what is learned: for the user to decide."""
    notes: list[str] = field(default_factory=list)

    @property
    def overrides(self) -> dict[str, Any]:
        return {key: value for trial in self.chosen for key, value in trial.change.items()}


def examine_rates(config: Config, archive: Archive, world: World, seconds: float, say: Say) -> Examination:
    """Measures every part, each for `seconds`. `world.size` ranks are planned, this process stands for the first.

    Raises `OutOfMemory` where the batch does not fit.
    """
    say("reading from the disk")
    slots = rank_slots(whole_archive(config, archive), config, world)
    reading = measure_reading(archive, (slots(step).ids for step in itertools.count()), seconds)
    with _announced("timing the reader, the decoder, the views and all of these together", say):
        step = untrained_step(config, world)
        bench = Bench(config, archive, world, step.objective.needs, slots, seconds)
        rates = in_turns(
            {
                "reader": bench.reader_block,
                "decode": bench.decode_block,
                "views": bench.views_block,
                "graph": bench.graph_block,
            }
        )
    with _announced("timing the training step", say):
        rates["step"], rows = bench.time_step(step)
    measured = Measured(
        **rates,
        storage=Rate(reading.samples_per_second),
        fits_in_memory=int(archive.shard_bytes.sum()) < available_memory(),
        shares_cores=world.device.type == "cpu",
    )
    return Examination(bench, step, measured, reading, rows)


def diagnose(found: Examination, say: Say) -> Diagnosis:
    """Judges what was found and tries what could help."""
    bench, measured = found.bench, found.measured
    verdict = judge(measured)
    diagnosis = Diagnosis(found, verdict)
    # a block is two steps or more, after those that fill the queue
    is_timed = measured.step.seconds * bench.spec.batch_size <= bench.seconds
    if is_timed:
        waits: list[float] = []
        with _announced("timing the loader and the step together", say):
            rates = in_turns({"trainer": lambda: bench.trainer_block(found.step, bench.spec, waits)})
        diagnosis.trainer, diagnosis.data_wait = rates["trainer"], statistics.median(waits)
    else:
        diagnosis.notes.append(
            f"a step of {bench.spec.batch_size} images takes about {measured.step.seconds * bench.spec.batch_size:.3g}"
            " s: loader and step were not timed together; a larger --seconds does"
        )
    if measured.fits_in_memory and measured.storage.seconds > measured.expected(measured.graph.seconds):
        diagnosis.notes.append(
            f"the first epoch waits for the disk ({measured.storage.value:,.0f} images/s);"
            " the archive fits in memory, from where later ones are read"
        )
    matters = verdict.input_share > (_INPUT_MATTERS if measured.shares_cores else 0.9)
    if is_timed and (matters or (diagnosis.data_wait or 0) > 0.05):
        _try_input_settings(diagnosis, say)
    elif not matters:
        share = f"{verdict.input_share:.0%} of the time" if measured.shares_cores else "less time than the step"
        diagnosis.notes.append(f"data.threads and data.prefetch were left alone: the input path takes {share}")
    if matters:
        with _tried("making some images smaller, to time the graph on them", diagnosis, say):
            diagnosis.short_side = _try_short_side(bench)
    if verdict.bottleneck == "step":
        _try_step_settings(diagnosis, say, is_timed)
    return diagnosis


def _try_input_settings(diagnosis: Diagnosis, say: Say) -> None:
    """Measures the whole trainer under other values of one key after the other, keeping what helps."""
    bench, step = diagnosis.examination.bench, diagnosis.examination.step
    spec, world = bench.spec, bench.world
    cores = cores_per_rank(world.local_size)
    values: dict[str, set] = {
        "threads": {cores, max(1, spec.threads // 2), min(cores, 2 * spec.threads)},
        "prefetch": {spec.prefetch + 1, 2 * spec.prefetch},
    }
    if world.device.type == "cuda":
        values["hw_decoder_load"] = {0.5, 0.75, 1.0}
    for name, options in values.items():
        others = sorted(options - {getattr(spec, name)})
        if not others:
            continue
        with _tried(f"trying data.{name} = {', '.join(map(str, others))}", diagnosis, say):
            specs = {"now": spec} | {str(value): replace(spec, **{name: value}) for value in others}
            rates = in_turns({key: partial(bench.trainer_block, step, of, []) for key, of in specs.items()})
            trials = [Trial({f"data.{name}": value}, "trainer", rates["now"], rates[str(value)]) for value in others]
            diagnosis.tried += trials
            if best := best_of(trials):
                diagnosis.chosen.append(best)
                spec = replace(spec, **{name: best.change[f"data.{name}"]})


def _try_step_settings(diagnosis: Diagnosis, say: Say, is_timed: bool) -> None:
    """Measures the step with torch.compile on a GPU, with twice the batch, and with float32 on a CPU."""
    found = diagnosis.examination
    bench, config, rows = found.bench, found.bench.config, found.step_rows
    if bench.world.device.type == "cuda" and not config.train.compile:
        with _tried("trying train.compile=true, which takes minutes", diagnosis, say):
            _try_compiling(diagnosis)
    if is_timed:
        with _tried(f"trying twice the batch, {2 * rows} images a rank", diagnosis, say):
            sizes = {"before": rows, "after": 2 * rows}
            rates = in_turns({key: partial(bench.step_block, found.step, of) for key, of in sizes.items()})
            change = {"train.batch_size": 2 * config.train.batch_size}
            diagnosis.optional.append(Trial(change, "step", **rates))
    if bench.world.device.type == "cpu" and config.train.precision != "float32":
        with _tried("trying train.precision=float32", diagnosis, say):
            exact = untrained_step(replace(config, train=replace(config.train, precision="float32")), bench.world)
            rate, rows_then = bench.time_step(exact)
            if rows_then >= rows:
                if rows_then > rows:  # then it would not tell which of the two helps
                    rate = rate_of([bench.step_block(exact, rows) for _ in range(BLOCKS)])
                trial = Trial({"train.precision": "float32"}, "step", found.measured.step, rate._replace(blocks=()))
                diagnosis.optional.append(trial)


def _try_compiling(diagnosis: Diagnosis) -> None:
    found = diagnosis.examination
    bench, config, rows = found.bench, found.bench.config, found.step_rows
    compiled = untrained_step(replace(config, train=replace(config.train, compile=True)), bench.world)
    try:
        with memory_errors("compiling"):
            compiled(bench.resident(rows))
    except RuntimeError as error:  # of whatever the compiler calls
        said = str(error).partition("\n")[0] or type(error).__name__
        diagnosis.notes.append(f"train.compile=true does not work here: {said}")
        return
    steps = {"before": found.step, "after": compiled}
    rates = in_turns({key: partial(bench.step_block, of, rows) for key, of in steps.items()})
    trial = Trial({"train.compile": True}, "step", **rates)
    diagnosis.tried.append(trial)
    diagnosis.chosen += [trial] * trial.helps


@contextmanager
def _announced(what: str, say: Say) -> Iterator[None]:
    """Says what is done, and names it where it takes more memory than there is."""
    say(what)
    with memory_errors(what):
        yield


@contextmanager
def _tried(what: str, diagnosis: Diagnosis, say: Say) -> Iterator[None]:
    """As `_announced` for what a user can do without: memory that does not suffice is a note."""
    try:
        with _announced(what, say):
            yield
    except OutOfMemory:
        diagnosis.notes.append(f"{what}: there is not enough memory")


def _try_short_side(bench: Bench) -> ShortSide | None:
    """Times the graph on some images made smaller next to the same as they are; None if they are small already."""
    views = (bench.spec.preset.puzzle, bench.spec.preset.anchor)
    # a view that is cut out of the image needs more of it than one that shows it whole
    wanted = 2 * bench.spec.image_size if any(view.crop for view in views) else -(-bench.spec.image_size * 8 // 7)
    rows = bench.archive.columns(bench.ids[0][:_SHRINK_IMAGES], ("width", "height"))
    now = int(np.median(np.minimum(rows["width"], rows["height"])))
    if now < 1.2 * wanted:
        return None
    decoder, smaller, larger, sizes, kept = TrainingDecoder(), [], [], [], []
    settings = ImageSettings(short_side=wanted, max_pixels=_MAX_PIXELS, pages="first")
    stored = zip(bench.encoded[0].images, rows["width"].tolist(), rows["height"].tolist(), strict=False)
    for place, (encoded, *size) in enumerate(stored):
        image = next(prepare_file(encoded.tobytes(), decoder, settings))
        if isinstance(image, Unusable):
            continue
        smaller.append(np.frombuffer(image.data, np.uint8))
        larger.append(encoded)
        kept.append(place)
        sizes.append((size, (image.width, image.height)))
    if not smaller:
        return None
    sizes_now, sizes_then = (np.array(part, np.int64) for part in zip(*sizes, strict=True))
    windows = bench.encoded[0].windows
    windows = None if windows is None else windows[kept]
    rates = in_turns(
        {
            "before": lambda: bench.graph_of_block(Encoded(larger, windows), sizes_now),
            "after": lambda: bench.graph_of_block(Encoded(smaller, windows), sizes_then),
        }
    )
    ratio = sum(map(len, smaller)) / sum(map(len, larger))
    return ShortSide(wanted, now, **rates, bytes_ratio=ratio)


def untrained_step(config: Config, world: World) -> TrainingStep:
    """A step on random weights: speed does not depend on them, and nothing is downloaded."""
    torch.manual_seed(config.seed)
    return TrainingStep(build_objective(config, world, fresh=False), config, world)


def planned_world(alone: World, ranks: int | None, config: Config) -> World:
    """`alone`, one process, as the first of `ranks` on this machine: it takes its part of batch and cores.

    ranks: None for one a GPU, or one. Raises `UserError` for a number that the batch cannot be split into.
    """
    if ranks is None:
        ranks = torch.cuda.device_count() if alone.device.type == "cuda" else 1
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    config.train.check_world_size(ranks)
    return replace(alone, size=ranks, local_size=ranks)
