"""fastfgssl: high-throughput fine-grained self-supervised learning on medical images (arXiv 2308.05770).

    config = fastfgssl.load_config("paper", ["data.path=archives/mine", "output=runs/first"])
    outcome = fastfgssl.pretrain(config)
    report = fastfgssl.evaluate(outcome.checkpoint, "archives/mine", "knn")
    backbone = fastfgssl.load(outcome.checkpoint)
    config = fastfgssl.load_config("dermoscopy_labels", [f"model.weights={outcome.checkpoint}"])
    classifier = fastfgssl.load(fastfgssl.finetune(config).checkpoint)

None of them prints, sets up logging or handles signals, which is left to the commands; what there is to say is logged
to `fastfgssl`; but a rank of several whose peer is gone can only say so on stderr, and end its process. A
`fastfgssl.runtime.errors.UserError` says in one line what was wrong with what was given.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfgssl.config.files import load_config as load_config
    from fastfgssl.evaluation.checkpoint import evaluate as evaluate
    from fastfgssl.evaluation.prediction import predict as predict
    from fastfgssl.evaluation.pretrained import load as load
    from fastfgssl.export.checkpoint import export_checkpoint as export_checkpoint
    from fastfgssl.finetuning import finetune as finetune
    from fastfgssl.pretraining import pretrain as pretrain

__version__ = "0.1.0"

# imported when asked for: torch and DALI take seconds, which `fastfgssl --help` need not wait for
_PUBLIC = {
    "load_config": "fastfgssl.config.files",
    "pretrain": "fastfgssl.pretraining",
    "finetune": "fastfgssl.finetuning",
    "evaluate": "fastfgssl.evaluation.checkpoint",
    "load": "fastfgssl.evaluation.pretrained",
    "predict": "fastfgssl.evaluation.prediction",
    "export_checkpoint": "fastfgssl.export.checkpoint",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
