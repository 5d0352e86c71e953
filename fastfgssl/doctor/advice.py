"""What measured rates mean: which part is the bottleneck, and which of the changes tried help beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastfgssl.doctor.rates import Rate

LEAST_GAIN = 0.03  # below it, a change is not worth a word


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates of one rank."""

    reader: Rate
    """Order, bytes from memory, view parameters."""
    decode: Rate
    """The decoder alone."""
    views: Rate
    """What comes after decoding, on images that are decoded."""
    graph: Rate
    """The whole input path: reader, decoder and views."""
    step: Rate
    """The training step on resident images."""
    storage: Rate
    """Images read from disk in the order of training."""
    fits_in_memory: bool
    """Whether the archive does: then the disk is read in the first epoch alone."""
    shares_cores: bool
    """Whether the step computes on the cores that decode: then their times add up, else they overlap."""

    def expected(self, graph_seconds: float) -> float:
        """Seconds that the trainer takes an image if the input path takes `graph_seconds`; the disk left out."""
        step = self.step.seconds
        return graph_seconds + step if self.shares_cores else max(graph_seconds, step)


class Verdict(NamedTuple):
    bottleneck: str
    """storage, reader, decode, views or step."""
    why: str
    input_share: float
    """Time of the input path: of the whole where cores are shared, else relative to the step (1: as long)."""
    images_per_second: float
    """Expected of one rank, from the rates of the parts."""


_NAMES = {
    "storage": "reading the archive from disk",
    "reader": "the reader (order, view parameters, copying bytes)",
    "decode": "decoding",
    "views": "making the views after decoding (resize, distortions, puzzles)",
    "step": "the training step",
}


def judge(measured: Measured) -> Verdict:
    """Names the part that a run waits for most."""
    whole, step = measured.graph.seconds, measured.step.seconds
    expected = measured.expected(whole)
    if not measured.fits_in_memory and measured.storage.seconds > expected:
        why = (
            f"the disk gives {figures(measured.storage.value)} images/s, the rest could take {figures(1 / expected)};"
            " the archive does not fit in memory, so every epoch reads it from there"
        )
        return Verdict("storage", why, whole / step, measured.storage.value)
    share = whole / expected if measured.shares_cores else whole / step
    if step >= whole:
        why = (
            f"it takes {step / expected:.0%} of the time on the cores that it shares with the input path"
            if measured.shares_cores
            else f"it makes {figures(measured.step.value)} images/s; the input path could feed"
            f" {figures(measured.graph.value)}"
        )
        return Verdict("step", why, share, 1 / expected)
    inside = {"reader": measured.reader, "decode": measured.decode, "views": measured.views}
    name = min(inside, key=lambda part: inside[part].value)
    why = (
        f"alone it makes {figures(inside[name].value)} images/s; the whole input path makes"
        f" {figures(measured.graph.value)}, the step could take {figures(measured.step.value)}"
    )
    return Verdict(name, why, share, 1 / expected)


def sentence(verdict: Verdict) -> str:
    return f"{_NAMES[verdict.bottleneck]}: {verdict.why}"


class Trial(NamedTuple):
    """A change that was measured next to what it changes, in turns."""

    change: dict[str, Any]
    """Dotted keys of the configuration, with their new values."""
    what: str
    """What was measured: trainer, step."""
    before: Rate
    after: Rate

    @property
    def gain(self) -> float:
        return self.after.over(self.before).value - 1

    @property
    def helps(self) -> bool:
        return _is_faster(self.before, self.after)


def _is_faster(before: Rate, after: Rate) -> bool:
    """Whether the gain is worth a word, and larger than its noise."""
    ratio = after.over(before)
    return ratio.value - 1 > max(LEAST_GAIN, ratio.noise)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial that gains most among those that help."""
    return max((trial for trial in trials if trial.helps), key=lambda trial: trial.gain, default=None)


def describe(trial: Trial) -> str:
    return (
        f"{as_overrides(trial.change)}: the {trial.what} from {figures(trial.before.value)} to"
        f" {figures(trial.after.value)} images/s ({trial.gain:+.0%}, noise {trial.after.over(trial.before).noise:.0%})"
    )


def as_overrides(change: dict[str, Any]) -> str:
    """`key.sub=value ...`, to be pasted after a command."""
    return " ".join(f"{key}={plain(value)}" for key, value in change.items())


def plain(value: Any) -> str:
    """As it is written in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def figures(value: float) -> str:
    """A number with four figures or all of its whole part, without an exponent where it is large."""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


class ShortSide(NamedTuple):
    """What smaller images in the shards would save: measured on images that were made smaller."""

    pixels: int
    """Short side of the new shards."""
    now: int
    """Median short side of the images."""
    before: Rate
    after: Rate
    """The whole graph's rate."""
    bytes_ratio: float
    """Bytes of the smaller images over those of the same images now."""

    def gain(self, measured: Measured) -> float:
        """Share by which the whole trainer would be faster."""
        graph = measured.graph.seconds / self.ratio
        return measured.expected(measured.graph.seconds) / measured.expected(graph) - 1

    @property
    def ratio(self) -> float:
        """Images/s of the whole graph then, over those now."""
        return self.after.over(self.before).value

    def helps(self, measured: Measured) -> bool:
        return _is_faster(self.before, self.after) and self.gain(measured) > LEAST_GAIN
