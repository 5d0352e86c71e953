"""An alarm where embeddings collapse, or the views of an image have nothing in common, while the loss looks like one.

It reads what is reported anyway, so it costs nothing: how many directions embeddings fill, how many of their
dimensions are dead, the diagonal of the cross-correlation matrix, and with `evaluate.every` whether views find their
image as often as before the first step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
_BY_CHANCE = 3.0  # standard errors that views may find their image less often than before the first step
_UNLIKE = 0.8  # of the diagonal's term of views that have nothing in common, and of where it began


class Sign(NamedTuple):
    """What tells of a collapse, and what helps."""

    what: str
    remedy: str


_RANK = "lower optim.lr, lengthen optim.warmup_epochs, or raise train.batch_size"
_SAME = "look at the picture: are the images all alike, or the views too strong (data.views)? else lower optim.lr"


class CollapseAlarm(Hook):
    """Warns once, keeps the checkpoint from before as checkpoints/before_collapse.pt, and a picture of the step."""

    def __init__(self, scored: Callable[[], int] = lambda: 0) -> None:
        """scored: how many images `score_matching_*` are of; 0 if there are none."""
        self._scored = scored

    def begin(self, run: Run) -> None:
        self._run = run
        self._low: dict[str, int] = {}  # the first of the scores in a row that are below that at the start
        self._best: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._since: dict[str, int] = {}  # the step from which a sign has been there
        self._from = run.start
        self._is_told = False
        dims = [update.dim for update in run.objective.updates]
        # without a length there is nothing to compare with
        self._dim = dims[0] if len(set(dims)) == 1 else None
        config = run.config
        self._warmup = round(config.optim.warmup_epochs * run.num_samples / config.train.batch_size)

    def state_dict(self) -> dict[str, Any]:
        seen = {"best": self._best, "first": self._first, "since": self._since, "low": self._low}
        return seen | {"from": self._from, "is_told": self._is_told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = ("best", "first", "since", "low")
        self._best, self._first, self._since, self._low = (dict(state[name]) for name in names)
        self._from, self._is_told = state["from"], state["is_told"]

    def __call__(self, moment: Moment) -> None:
        if self._is_told or not self._run.world.is_main:
            return
        self._look_at_scores(moment)
        if self._is_told or "loss" not in moment.logs:
            return
        signs = self._signs(moment)
        self._since = {name: self._since.get(name, moment.step) for name in signs}
        # of rare reports one says as much as several of frequent ones
        lasts = 0 if self._run.config.train.log_every >= _LASTS else _LASTS
        for name, since in self._since.items():
            if moment.step - since >= lasts and not self._is_told:
                self._tell(signs[name], since, moment)

    def _look_at_scores(self, moment: Moment) -> None:
        """Two in a row, far enough into training, that are worse than the first by more than chance, are a sign."""
        for name, value in moment.logs.items():
            if not name.startswith("score_matching") or not math.isfinite(value):
                continue
            first = self._first.setdefault(name, value)
            error = math.sqrt((first * (1 - first) + value * (1 - value)) / max(1, self._scored()))
            if not self._is_trained(moment.step) or value >= first - _BY_CHANCE * error:
                self._low.pop(name, None)
                continue
            since = self._low.setdefault(name, moment.step)
            if since < moment.step and not self._is_told:
                what = f"views find their image among others less often than at the start: {name} {value:.3g}, then"
                self._tell(Sign(f"{what} {first:.3g}", _RANK), since, moment)

    def _is_trained(self, step: int) -> bool:
        """Whether views of an image are to be like each other by now."""
        return step - max(self._from, self._warmup) >= _BY_THEN

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
                if self._is_trained(moment.step) and value > _UNLIKE * max(first, dim):
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
