"""Which versions of what it needs the program runs with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "triton": "triton",
    "dali": "nvidia-dali-cuda130",
    "numpy": "numpy",
    "timm": "timm",
}


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {name: version_of(package) for name, package in _PACKAGES.items()}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text}


def version_of(package: str) -> str | None:
    """Of a package by its name on PyPI; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
