"""What docs/security.md says of the code itself: nothing in it runs what a file holds, no port is opened, and files
are written where they were asked for, for those whom the umask lets read them.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.pretraining import pretrain
from fastfgssl.training.hooks import Hook
from helpers.paths import ROOT

FILES = [path for folder in ("fastfgssl", "kernels", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]

FORBIDDEN = {
    # modules that run what they read, or listen
    r"import (pickle|dill|cloudpickle|joblib|shelve|marshal|socketserver|http\.server|xmlrpc|telnetlib|pty)",
    # calls of them, by whatever name the module goes
    r"call (eval|exec|compile|__import__)",
    r"call .*\.(system|popen|mktemp|extractall|unpack_archive)",
    r"call .*\.(bind|listen|create_server|start_server|serve_forever)",
    r"call (.*\.)?(unsafe_load|full_load|load_all|FullLoader|UnsafeLoader)",
    r"keyword (shell|allow_pickle|trust_remote_code)=True",
    r"keyword (weights_only|verify)=False",
    r"torch\.load without weights_only=True",
    r"yaml\.load without TextLoader",
    r"subprocess of a text",  # commands are lists of words: no shell takes them apart
}
ALLOWED = {
    # of a Ray cluster, whose nodes run each other's code whatever they send: docs/clusters.md says so
    ("fastfgssl/archive/cluster/ray_pool.py", "import pickle"),
    ("fastfgssl/archive/cluster/station.py", "import pickle"),
}

TEXTS = (ast.Constant, ast.JoinedStr, ast.BinOp)


def facts(text: str) -> list[str]:
    """What a module imports, calls, and hands to calls by name, as `FORBIDDEN` names it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"import {node.module}", *(f"call {node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [f"call {name}", *(f"keyword {key}={value}" for key, value in given.items())]
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if name == "yaml.load" and [ast.unparse(word) for word in node.args[1:]] != ["TextLoader"]:
                found.append("yaml.load without TextLoader")
            if re.match(r"subprocess\.|run_child", name) and node.args and isinstance(node.args[0], TEXTS):
                found.append("subprocess of a text")
    return found


def forbidden(text: str) -> list[str]:
    return [fact for fact in facts(text) if any(re.fullmatch(rf"(?:{pattern})(\..*)?", fact) for pattern in FORBIDDEN)]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "os.system(line)",
        "from os import system",
        "subprocess.run(line, shell=True)",
        "subprocess.run(f'rm {folder}')",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.full_load(text)",
        "tempfile.mktemp()",
        "archive.extractall(folder)",
        "server.listen()",
    ],
)
def test_what_is_forbidden_is_found(text):
    assert forbidden(text)


def test_no_file_runs_what_it_reads_and_none_listens():
    found = {(str(path.relative_to(ROOT)), fact) for path in FILES for fact in forbidden(path.read_text())}
    assert found == ALLOWED


class Listening(Hook):
    """Notes the ports that this process listens on."""

    ports: frozenset[str] = frozenset()

    def __call__(self, moment) -> None:
        self.ports |= ports_of_this_process()


def ports_of_this_process() -> frozenset[str]:
    own = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    tables = [Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
    return frozenset(socket[1] for socket in sockets if socket[3] == "0A" and f"socket:[{socket[9]}]" in own)


def modes(folder: Path) -> set[str]:
    paths = [folder, *folder.rglob("*")]
    return {f"{'folder' if path.is_dir() else 'file'} {path.stat().st_mode & 0o777:o}" for path in paths}


@pytest.mark.parametrize("umask", [0o027, pytest.param(0o077, marks=pytest.mark.slow)])
def test_files_are_for_whom_the_umask_says_and_where_they_were_asked_for(
    phantom_folder, make_config, tmp_path, monkeypatch, umask
):
    """Also where folders have names that are no UTF-8, break lines, and look like options."""
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"-- \xff\n\xe2\x80\xae[bold]")
    archive, run, private = (tmp_path / f"{odd}{name}" for name in ("archive", "run", "archive.private"))
    listening, before = Listening(), ports_of_this_process()
    shared = os.umask(umask)
    try:
        prepare(PrepareOptions(sources=[phantom_folder / "images"], out=archive, workers=1))
        pretrain(make_config(data__path=str(archive), output=str(run), train__steps=1), hooks=[listening])
    finally:
        os.umask(shared)
    as_usual = {f"folder {0o777 & ~umask:o}", f"file {0o666 & ~umask:o}"}
    assert modes(archive) == modes(run) == as_usual
    assert modes(private) == {"folder 700", "file 600"}  # names of files, and the key of ids
    assert set(tmp_path.iterdir()) == {archive, private, run}
    assert listening.ports <= before


@pytest.mark.parametrize("page", ["security", "reliability"])
def test_tests_that_a_page_names_are_there(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = re.findall(r"`(?:tests/\S+/)?(test_\w+\.py)(?:: (test_\w+))?`", text)
    assert len(named) > 10
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert not test or f"def {test}(" in path.read_text(), f"{file}: {test}"
    # of one file, a second test by its name alone
    for test in re.findall(r"`(test_\w+)`", text):
        assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py")), test
