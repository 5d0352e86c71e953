"""The README cannot rot: its commands parse, its paths exist."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from fastfgssl.archive.options import PrepareOptions
from fastfgssl.commands.prepare import parse_arguments
from fastfgssl.config.files import load_config
from helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "kernels").glob("*/README.md"))]
SOURCES = {"setup.py"} | {file.name for room in ("fastfgssl", "kernels") for file in (ROOT / room).rglob("*.*")}
SOURCES |= {file.name for file in (ROOT / "tests").rglob("*.py")}


def commands() -> list[str]:
    """The lines of all shell blocks of all pages, without their comments."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.partition("#")[0].strip() for line in joined.splitlines() if line.partition("#")[0].strip()]


def test_there_are_commands():
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_name_what_exists(command, monkeypatch):
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] == ".":  # the environment that `make` sets up
        assert words[1] == ".venv/bin/activate"
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] in ("pip", "export"):
        return
    assert words[0] in ("python", "torchrun", "fastfgssl"), command
    start = words.index("fastfgssl") + 1 if "fastfgssl" in words else words.index(find_tool(words))
    name = words[start].removeprefix("tools/").removesuffix(".py")
    source = source_of(name)
    for option in (word for word in words[start:] if word.startswith("--")):
        known = f'"{option}"' in source or f'("{option[2:]}",' in source  # in a table of options
        assert known, f"{name} has no {option}"
    if name == "prepare":
        words_of_tool = [re.sub(r"\$\w+", "1", word) for word in words[start + 1 :]]  # for a variable of the shell
        monkeypatch.setattr(sys, "argv", [name, *words_of_tool])
        arguments = vars(parse_arguments())
        if not arguments.pop("verify"):
            PrepareOptions(**arguments)
    if "--config" in words:
        config = words[words.index("--config") + 1]
        overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=\S+", word)]
        load_config(ROOT / config if "/" in config else config, overrides)


def source_of(name: str) -> str:
    """A command's file, and those of other commands that it takes from."""
    source = (ROOT / "fastfgssl" / "commands" / f"{name}.py").read_text()
    return source + "".join(map(source_of, re.findall(r"from fastfgssl\.commands\.(\w+) import", source)))


def find_tool(words: list[str]) -> str:
    return next(word for word in words if word.startswith("tools/"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b((?:fastfgssl|kernels|configs|tools|tests|docs)/[\w./-]+\w/?)", text):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page}: {link}"
    for name in re.findall(r"`([\w-]+\.(?:py|h|cuh|cc|cu))`", text):
        assert name in SOURCES, f"{page}: {name}"
