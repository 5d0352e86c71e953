"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from fastfgssl.runtime.console import ProgressLine
from fastfgssl.training.hooks import Hook, Moment, Run


class Terminal(Hook):
    """Shows a run's progress on the first rank; name: what the run does."""

    def __init__(self, console: Console, name: str = "pretraining") -> None:
        self._console, self._name = console, name

    def begin(self, run: Run) -> None:
        self._run = run
        self._line = ProgressLine(
            self._console,
            TextColumn(self._name, markup=False, table_column=Column(max_width=24, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            quiet=not run.world.is_main,
            transient=False,
        )
        self._line.__enter__()
        self._line.update(run.start, run.steps)

    def __call__(self, moment: Moment) -> None:
        text = self._describe(moment.logs) if "loss" in moment.logs else None
        self._line.update(moment.step, self._run.steps, text)
        if text is not None:
            speed = self._line.speed
            eta = f"  eta {(self._run.steps - moment.step) / speed:.0f} s" if speed else ""
            where = f"step {moment.step}/{self._run.steps}  epoch {moment.logs['epoch']:.2f}"
            self._line.line(f"{where}  {text}{eta}", always=True)

    def end(self) -> None:
        if hasattr(self, "_line"):
            self._line.__exit__()

    def _describe(self, logs: dict[str, float]) -> str:
        parts = {name.removeprefix("loss_"): logs[name] for name in self._run.objective.weights}
        losses = " ".join(f"{name}:{loss:.4g}" for name, loss in parts.items())
        return (
            f"loss {logs['loss']:.4g} ({losses})  {logs['images_per_second']:.0f} images/s"
            f"  data wait {logs['data_wait']:.0%}  lr {logs['lr']:.2g}"
        )
