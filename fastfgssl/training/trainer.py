"""Pretraining: batches from the archive, the losses of the heads, optimiser updates, metrics and checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.files import config_to_values, write_config
from fastfgssl.config.schema import STAGES, Config
from fastfgssl.data.batch import Batch
from fastfgssl.data.graph import GraphSpec
from fastfgssl.data.loader import Loader, training_slots
from fastfgssl.data.order import Slots
from fastfgssl.data.picture import save_views_picture
from fastfgssl.data.presets import find_preset
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.models import build_model
from fastfgssl.runtime.distributed import (
    SharedFlag,
    World,
    one_rank_first,
    require_agreement,
    shared_errors,
    start_world,
)
from fastfgssl.runtime.environment import cores_per_rank
from fastfgssl.runtime.errors import UserError, file_errors, met_alone
from fastfgssl.runtime.memory import memory_errors
from fastfgssl.runtime.signals import StopRequest
from fastfgssl.training.checkpoint import load_newest_checkpoint, save_checkpoint, tidy_checkpoints
from fastfgssl.training.display import Display
from fastfgssl.training.metrics import Clock, DataWaitWatch, MetricsLog, StepMetrics
from fastfgssl.training.optim import learning_rate_factor, set_learning_rate
from fastfgssl.training.resume import changed_length, check_same_run
from fastfgssl.training.step import HeadValues, TrainingStep
from fastfgssl.training.updates import TERMS

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    steps_done: int
    stopped_by: int | None  # the signal, to any rank, that ended the run early; None if it is complete


def pretrain(config: Config) -> Outcome:
    """Runs, or goes on with, the pretraining that `config` describes; returns early on SIGINT, SIGTERM or SIGUSR1.

    Raises `UserError` for a configuration that this machine or archive cannot satisfy.
    """
    with start_world(config.train.device) as world, StopRequest() as stop_request:
        run = Run(config, world)
        with Display(world, start=run.step, steps=run.steps) as display:
            return run.train(display, stop_request)


class Run:
    """A run's state: everything that a step reads or changes."""

    def __init__(self, config: Config, world: World) -> None:
        config.train.check_world_size(world.size)
        self.config, self.world = config, world
        with shared_errors(world):
            self.archive = Archive.open(config.data.path)
            self.spec = graph_spec(config, world, self.archive)
        self.steps = _planned_steps(config, self.archive)
        self.output = Path(config.output)
        self.checkpoints = self.output / "checkpoints"

        torch.manual_seed(config.seed)
        with shared_errors(world), one_rank_first(world):
            model = build_model(config.model)
        self.make_step = TrainingStep(model, config, world)
        self.step = self._resume()

    def train(self, display: Display, stop_request: StopRequest) -> Outcome:
        """Makes the steps that are left."""
        config, world = self.config, self.world
        start, stopped = self.step, 0
        if start >= self.steps:
            log.info("%s is complete: %d of %d steps are done", self.output, start, self.steps)
            return Outcome(start, None)
        with shared_errors(world):
            metrics_log = self._open_output()
        stop_flag = SharedFlag(world)
        with shared_errors(world), one_rank_first(world):  # the first builds the plugin, the others find it built
            loader = self.make_loader()
        clock, watch = Clock(self.step), DataWaitWatch(self.output / "config.yaml")
        while self.step < self.steps and not stopped:
            stop_flag.ask(stop_request.signal_number or 0)
            # take the next batch
            with clock.waiting(), met_alone(), memory_errors("making a batch"):
                batch = next(loader)
            if self.step == 0:
                self._save_picture(batch)
            # train every head on it
            set_learning_rate(self.make_step.optimizer, self._learning_rate_factor())
            to_report = (self.step + 1) % config.train.log_every == 0 or self.step + 1 == self.steps
            with met_alone(), memory_errors(f"making step {self.step + 1}"):
                heads = self.make_step(batch, with_rank=to_report)
            self.step += 1
            display.step_done()
            stopped = stop_flag.answer()
            # report and save
            is_last = stopped or self.step == self.steps
            if is_last or to_report:
                metrics = self._metrics(heads, clock)
                display.show(metrics)
                warning = watch.look(metrics.data_wait)
                if warning and world.local_rank == 0:  # disks and cores are what a machine's ranks share
                    log.warning("%s", warning)
                with shared_errors(world), file_errors("write", self.output / "metrics.jsonl"):
                    if metrics_log:
                        metrics_log.write(metrics)
                self._require_finite(
                    [f"the loss of head {head}" for head, loss in metrics.losses.items() if not math.isfinite(loss)]
                )
            if is_last or self.step % config.train.checkpoint_every == 0:
                self._save()
        if metrics_log:
            metrics_log.close()
        if stopped:
            log.info("stopped after step %d of %d; run the same command to go on", self.step, self.steps)
            return Outcome(self.step, stopped)  # the same on every rank, also where no signal arrived
        if self.make_step.updates_made != (self.steps - start) * len(self.make_step.updates):
            raise AssertionError(f"made {self.make_step.updates_made} updates in {self.steps - start} steps")
        log.info("done: %d steps; results in %s", self.steps, self.output)
        return Outcome(self.step, None)

    def _resume(self) -> int:
        """Loads the newest checkpoint, or saves the first one; returns the steps that are done."""
        with shared_errors(self.world):
            state, damaged = load_newest_checkpoint(self.checkpoints)
        require_agreement(state["step"] if state else 0, self.world, f"checkpoints of {self.output}")
        if state is not None:
            check_same_run(state, self.config, self.archive)
        with shared_errors(self.world):
            if self.world.is_first:
                tidy_checkpoints(self.checkpoints, damaged)
        if state is None:
            self.step = 0
            self._save()
            return 0
        change = changed_length(state, self.config)
        if change and self.world.is_first:
            log.warning("%s", change)
        self.make_step.load_state_dict(state)
        return state["step"]

    def _save(self) -> None:
        """Writes a checkpoint, on the first rank, unless the network has diverged."""
        with shared_errors(self.world):
            if not self.world.is_first:
                return
            state = {
                "step": self.step,
                **self.make_step.state_dict(),
                "config": config_to_values(self.config),
                "archive": self.archive.fingerprint,
            }
            self._require_finite([name for name, value in state["model"].items() if not value.isfinite().all()])
            save_checkpoint(self.checkpoints, state, keep=self.config.train.keep_checkpoints)

    def _save_picture(self, batch: Batch) -> None:
        """Writes what the network is shown, on the first rank."""
        file, data = self.output / "views.png", self.config.data
        with shared_errors(self.world), file_errors("write", file):
            if self.world.is_first:
                save_views_picture(batch, file, grids=self.config.model.grids, mean=data.mean, std=data.std)

    def _open_output(self) -> MetricsLog | None:
        """Writes the configuration and opens the metrics, on the first rank."""
        if not self.world.is_first:
            return None
        with file_errors("write", self.output / "config.yaml"):
            write_config(self.config, self.output / "config.yaml")
        with file_errors("write", self.output / "metrics.jsonl"):
            return MetricsLog(self.output, self.step)

    def make_loader(self) -> Iterator[Batch]:
        """The batches of the steps that are left."""
        config, world = self.config, self.world
        slots = rank_slots(config, world, self.archive)
        quarantine = Quarantine(self.archive.num_samples, self.output / "quarantine.csv")
        return Loader(
            self.archive, self.spec, slots, seed=config.seed, quarantine=quarantine, start=self.step, stop=self.steps
        )

    def _learning_rate_factor(self) -> float:
        config = self.config
        steps_an_epoch = self.archive.num_samples / config.train.batch_size
        return learning_rate_factor(
            self.step,
            steps=self.steps,
            warmup_steps=round(config.optim.warmup_epochs * steps_an_epoch),
            final=config.optim.final_lr,
        )

    def _metrics(self, heads: HeadValues, clock: Clock) -> StepMetrics:
        values = {stage: loss.item() for stage, (loss, _) in heads.items()}  # waits for the device
        weights = dict(zip(STAGES, self.config.loss.weights, strict=True))
        lr = {group["name"]: group["lr"] for group in self.make_step.optimizer.param_groups}
        steps, seconds, waited = clock.lap(self.step)
        batch_size = self.config.train.batch_size
        return StepMetrics(
            step=self.step,
            epoch=self.step * batch_size / self.archive.num_samples,
            loss=sum(weights[stage] * value for stage, value in values.items()),
            losses=values,
            terms={stage: dict(zip(TERMS, terms.tolist(), strict=True)) for stage, (_, terms) in heads.items()},
            lr=lr["heads_weights"],
            backbone_lr=lr["backbone_weights"],
            images_per_second=steps * batch_size / seconds,
            data_wait=waited / seconds,
        )

    def _require_finite(self, broken: list[str]) -> None:
        """Ends a run that has diverged; `broken` names what is not finite."""
        if broken:
            raise UserError(
                f"{broken[0]} is not finite at step {self.step}; the checkpoints before it are intact in"
                f" {self.checkpoints}: lower optim.lr, lengthen optim.warmup_epochs, or try another train.precision"
            )


def _planned_steps(config: Config, archive: Archive) -> int:
    """Steps of the run; an epoch that the batch size does not divide is rounded up to a whole step."""
    if config.train.steps is not None:
        return config.train.steps
    return math.ceil(config.train.epochs * archive.num_samples / config.train.batch_size)


def rank_slots(config: Config, world: World, archive: Archive) -> Callable[[int], Slots]:
    """The samples of this rank at each step."""
    return training_slots(
        archive,
        seed=config.seed,
        window=config.data.window,
        batch_size=config.train.batch_size,
        rank=world.rank,
        world_size=world.size,
    )


def graph_spec(config: Config, world: World, archive: Archive) -> GraphSpec:
    """What the DALI graph of each rank makes."""
    on_gpu = world.device.type == "cuda"
    return GraphSpec(
        batch_size=config.train.batch_size // world.size,
        image_size=config.data.image_size,
        preset=find_preset(config.data.views),
        grids=config.model.grids,
        mean=config.data.mean,
        std=config.data.std,
        half=on_gpu and config.train.precision != "float32",
        sixteen_bit=archive.is_sixteen_bit,
        device_id=world.device.index if on_gpu else None,
        threads=config.data.threads or cores_per_rank(world.local_size),
        prefetch=config.data.prefetch,
        hw_decoder_load=config.data.hw_decoder_load,
    )
