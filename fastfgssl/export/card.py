"""The model card: what the network is, what it learned from, how well it does, what it is for and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastfgssl import __version__
from fastfgssl.config.files import config_to_values
from fastfgssl.evaluation.pretrained import Pretrained
from fastfgssl.export.base import Format, Part, Usage
from fastfgssl.export.parity import BATCHES
from fastfgssl.export.preprocessing import torchvision_code
from fastfgssl.export.score_tables import plain, score_lines, table
from fastfgssl.runtime.versions import versions

_PLACES = (
    "data.path",
    "data.cache",
    "output",
    "output_fallback",
)  # on the machine of whoever trained it: nobody else's business

_MEANING = {
    "features": "the average of the backbone's last map",
    "backbone": "the average of the backbone's last map",
    "head_0": "pooled vector of the first block, for fine structure",
    "head_1": "pooled vector of the second block",
    "head_2": "pooled vector of the third block, for coarse structure",
    "all": "those of all blocks side by side",
    "logits": "one a class in the order below, the sum of those of all classifiers; their softmax gives probabilities",
}

_PURPOSE = {
    "backbone": "Features of images like those that it was trained on: to fine-tune, to compare, to search. It names no"
    " diagnosis.",
    "hierarchy": "Features of images like those that it was trained on, from fine structure to coarse: to train a"
    " classifier on, to compare, to search. It names no diagnosis.",
    "classifier": "Research on telling the classes above apart in images like those that it was trained on.",
}

_LIMITS = """\
- It is not a medical device, and nobody has tested it as one. No decision about a patient may rest on it.
- Scores hold for images like those that were scored: of that camera or scanner, population and selection. Score it on
  images of your own, from other patients, before you rely on it, and look at each group that matters.
- It was trained at {size} x {size} pixels: what cannot be seen at that size, it cannot know. An image of another kind
  gets {output} all the same.
- It may have learned what goes with a diagnosis in its archive and not in yours: rulers, ink, borders, the make of a
  device."""


class Card(NamedTuple):
    """What a card is written of."""

    pretrained: Pretrained
    part: Part
    format: Format
    file: Path
    usage: Usage
    difference: float
    scores: list[dict[str, Any]]
    """Reports of `fastfgssl evaluate`."""


def write_card(file: Path, card: Card) -> None:
    """Writes the card as Markdown."""
    file.write_text("\n".join(_lines(card)) + "\n", encoding="utf-8", errors="backslashreplace")


def _lines(card: Card) -> Iterator[str]:
    config, part = card.pretrained.config, card.part
    yield f"# {plain(card.file.name)}"
    backbone = plain(config.model.backbone)
    yield f"\nThe {part.name} of a {backbone}, written for {card.format.library} by fastfgssl {__version__}."
    yield "\n## Use"
    yield f"\n```python\n{card.usage.code}\n```"
    images = f"`images` are float32 [B, {config.model.in_channels}, S, S]"
    yield f"\n{images}, which this makes of PIL images and of uint8 or uint16 tensors:"
    yield f"\n```python\n{torchvision_code(config)}\n```\n"
    yield from table(
        ("output", "length", "what it is"), ((n, str(d), _MEANING.get(n, n)) for n, d in part.width.items())
    )
    yield from (f"\n{remark}" for remark in card.usage.remarks)
    if part.classes:
        yield "\nClasses: " + ", ".join(f"{number} {plain(name)}" for number, name in enumerate(part.classes)) + "."
    batches = ", ".join(map(str, BATCHES[:-1]))
    yield (
        f"\nRead by {card.format.library} and run on batches of {batches} and {BATCHES[-1]}, it differs from the"
        f" network by at most {card.difference:.1e} of an output's largest value."
    )
    yield "\n## Training\n"
    facts = {
        "objective": config.objective,
        "archive, by its fingerprint": card.pretrained.archive,
        "steps": f"{card.pretrained.step:,} of {config.train.batch_size:,} images",
        "exported with": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    yield from table(("", ""), facts.items())
    yield "\nAll settings of the recipe:\n\n```yaml"
    for key, value in config_to_values(config).items():
        if key == "model.weights" and value not in ("imagenet", "none"):
            value = "a file"
        if key not in _PLACES:
            yield f"{key}: {json.dumps(value)}"
    yield "```\n\n## Scores\n"
    if not card.scores:
        yield "None are given. `fastfgssl evaluate --json FILE` makes some, `fastfgssl export --scores FILE` adds them."
    for report in card.scores:
        yield from score_lines(report)
    yield f"\n## Intended use\n\n{_PURPOSE[part.name]}"
    output = "a class" if part.classes else "features"
    yield f"\n## Limits\n\n{_LIMITS.format(size=part.image_size, output=output)}"
