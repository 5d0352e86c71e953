"""An alarm where embeddings collapse, or the views of an image have nothing in common, while the loss looks like one.

It reads what is reported anyway, so it costs nothing: how many directions embeddings fill, how many of their
dimensions are dead, and the diagonal of the cross-correlation matrix.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from fastfgssl.data.picture import save_views_picture
from fastfgssl.training.checkpoint import list_checkpoints
from fastfgssl.training.hooks import Hook, Moment, Run, spared
from fastfgssl.training.saving import keep_as

log = logging.getLogger(__name__)

_KEPT = "before_collapse.pt"

_LASTS = 20  # steps that a sign has to last, so that one odd batch is none
_BY_THEN = 100  # steps of training, warm-up apart, after which the views of an image are to be like each other
_FEW_DIRECTIONS = 2.0  # of embeddings that fill fewer, hardly anything can be told apart
_FALLEN = 0.1  # of what it has been at its best: an effective rank that falls so far does not come back
_UNLIKE = 0.8  # of the diagonal's term of views that have nothing in common, and of where it began


class Sign(NamedTuple):
    """What tells of a collapse, and what helps."""

    what: str
    remedy: str


_RANK = "lower optim.lr, lengthen optim.warmup_epochs, or raise train.batch_size"
_SAME = "look at the picture: are the images all alike, or the views too strong (data.views)? else lower optim.lr"


class CollapseAlarm(Hook):
    """Warns once, keeps the checkpoint from before as checkpoints/before_collapse.pt, and a picture of the step."""

    def begin(self, run: Run) -> None:
        self._run = run
        self._best: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._since: dict[str, int] = {}  # the step from which a sign has been there
        self._is_told = False
        dims = [update.dim for update in run.objective.updates]
        # without a length there is nothing to compare with
        self._dim = dims[0] if len(set(dims)) == 1 else None
        config = run.config
        self._warmup = round(config.optim.warmup_epochs * run.num_samples / config.train.batch_size)

    def __call__(self, moment: Moment) -> None:
        if self._is_told or not self._run.world.is_main or "loss" not in moment.logs:
            return
        signs = self._signs(moment)
        self._since = {name: self._since.get(name, moment.step) for name in signs}
        # of rare reports one says as much as several of frequent ones
        lasts = 0 if self._run.config.train.log_every >= _LASTS else _LASTS
        for name, since in self._since.items():
            if moment.step - since >= lasts and not self._is_told:
                self._tell(signs[name], since, moment)

    def _signs(self, moment: Moment) -> dict[str, Sign]:
        """By the name of the number that shows it."""
        signs, dim = {}, self._dim
        for name, value in moment.logs.items():
            if not math.isfinite(value):
                continue
            head = name.rpartition("_")[2] if name[-1].isdigit() or name.endswith("_all") else ""
            of = f"head {head}: " if head else ""
            if name.startswith("effective_rank"):
                self._best[name] = best = max(value, self._best.get(name, value))
                if value < _FEW_DIRECTIONS or value < _FALLEN * best:
                    signs[name] = Sign(f"{of}embeddings fill {value:.1f} directions, {best:.1f} at their best", _RANK)
            elif name.startswith("dead_dimensions") and dim and value > dim / 2:
                signs[name] = Sign(f"{of}{value:.0f} of {dim} dimensions are the same for all images", _RANK)
            elif name.startswith("on_diagonal") and dim:
                first = self._first.setdefault(name, value)
                trained = moment.step - max(self._run.start, self._warmup)
                if trained >= _BY_THEN and value > _UNLIKE * max(first, dim):
                    signs[name] = Sign(f"{of}views of an image are no more alike than those of different ones", _SAME)
        return signs

    def _tell(self, sign: Sign, since: int, moment: Moment) -> None:
        self._is_told = True
        run = self._run
        picture = run.output / f"collapse_step_{moment.step}.png"
        data = run.config.data
        with spared(picture):
            save_views_picture(moment.batch, picture, grids=run.objective.needs.grids, mean=data.mean, std=data.std)
        kept = None
        with spared(run.output / "checkpoints" / _KEPT):
            kept = self._keep(since)
        log.warning(
            "collapse at step %d: %s: %s; views of the step: %s%s",
            moment.step,
            sign.what,
            sign.remedy,
            picture,
            f"; kept from before: {kept}" if kept else "",
        )

    def _keep(self, since: int) -> str | None:
        """The newest checkpoint from before step `since`, under a name that no later one pushes out."""
        folder = self._run.output / "checkpoints"
        before = [path for path in list_checkpoints(folder) if int(path.stem.rpartition("_")[2]) < since]
        if not before:
            return None
        kept = folder / _KEPT
        keep_as(before[-1], kept)
        return f"{kept} (step {int(before[-1].stem.rpartition('_')[2])})"
