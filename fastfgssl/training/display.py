"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastfgssl.runtime.distributed import World
from fastfgssl.training.metrics import StepMetrics


class _ConsoleHandler(logging.Handler):
    """Prints log records above the live line, and unwrapped where the output is a file."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Shows a run's progress on the first rank; warnings of the other ranks carry their rank."""

    def __init__(self, world: World, *, start: int, steps: int) -> None:
        self._console = Console()
        self._is_live = world.is_first and self._console.is_terminal
        self._shows = world.is_first
        self._steps = steps
        self._progress = Progress(
            TextColumn("pretraining"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
            disable=not self._is_live,
        )
        self._task = self._progress.add_task("", total=steps, completed=start, metrics="")
        logging.basicConfig(
            level=logging.INFO if world.is_first else logging.WARNING,
            format="%(message)s" if world.is_first else f"rank {world.rank}: %(message)s",
            handlers=[_ConsoleHandler(self._console)],
            force=True,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def step_done(self) -> None:
        """Moves the bar by a step."""
        self._progress.advance(self._task)

    def show(self, metrics: StepMetrics) -> None:
        """Shows a logged step."""
        losses = " ".join(f"{head}:{loss:.4g}" for head, loss in metrics.losses.items())
        text = (
            f"loss {metrics.loss:.4g} ({losses})  {metrics.images_per_second:.0f} images/s"
            f"  data wait {metrics.data_wait:.0%}  lr {metrics.lr:.2g}"
        )
        if self._is_live:
            self._progress.update(self._task, metrics=text)
        elif self._shows:
            left = (self._steps - metrics.step) / max(self._progress.tasks[0].speed or 0, 1e-9)
            eta = f"  eta {left:.0f} s" if self._progress.tasks[0].speed else ""
            line = f"step {metrics.step}/{self._steps}  epoch {metrics.epoch:.2f}  {text}{eta}"
            self._console.print(line, highlight=False, soft_wrap=True)
