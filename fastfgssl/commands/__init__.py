"""The commands: arguments in, a call of the library, words out.

`fastfgssl NAME`, `python -m fastfgssl NAME` and, in a checkout, `python tools/NAME.py` are the same.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from fastfgssl import __version__
from fastfgssl.runtime.console import run_tool
from fastfgssl.runtime.errors import UserError, nearest

COMMANDS = {
    "prepare": "makes an archive of images, or checks one",
    "train": "pretrains a network on an archive",
    "finetune": "trains a classifier on labelled images",
    "evaluate": "scores what a network has learned",
    "compare": "holds objectives against each other, over seeds",
    "predict": "writes a classifier's probabilities for images",
    "export": "writes a network for torchvision, timm, ONNX and others",
    "doctor": "says what holds training back, or plans a large run",
    "bench": "measures speed beside baselines and limits",
    "demo": "the whole way on generated images",
    "phantom": "generates images to try everything on",
}


def run(name: str | None = None) -> None:
    """What `fastfgssl` and `python -m fastfgssl` call, and with a command's name `tools/NAME.py`."""
    run_tool(_dispatch if name is None else lambda: _main_of(name)())


def _dispatch() -> int | None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("Fine-grained self-supervised learning on medical images: fastfgssl COMMAND ...\n")
        print("\n".join(f"  {command:<10} {does}" for command, does in COMMANDS.items()))
        print("\nfastfgssl COMMAND --help says more about each.")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command{nearest(name, COMMANDS)}; see fastfgssl --help")
    return run_command(name, *sys.argv[2:])


def run_command(name: str, *words: str) -> int | None:
    """Runs a command in this process, with the words that a person would type after its name; its exit code."""
    sys.argv = [f"fastfgssl {name}", *words]
    return _main_of(name)()


def _main_of(name: str) -> Callable[[], int | None]:
    main: Callable[[], int | None] = importlib.import_module(f"fastfgssl.commands.{name}").main
    return main
