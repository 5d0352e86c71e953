"""The plugin's build: cached, safe when ranks start together, clear about a compiler that is missing or too old."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fastfgssl.kernels import build
from fastfgssl.kernels import cache as cache_of
from fastfgssl.kernels.build import PLUGIN, BuildError
from fastfgssl.runtime.console import log_to, make_console
from helpers.command import Command
from helpers.further import further


def build_plugin(cache: Path | None = None) -> Path:
    return build.build(PLUGIN, cache)


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes its output and notes each call; returns the file of notes."""
    notes = tmp_path / "calls"
    folder = tmp_path / "bin"
    folder.mkdir()
    compiler = folder / "g++"
    compiler.write_text(
        f"""#!/bin/sh
case "$1" in -dumpversion) echo 12; exit;; --version) echo "g++ 12"; exit;; esac
echo call >> {notes}
sleep 1
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo library > "$2"; shift; done
"""
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CXX", raising=False)
    # as on a machine without CUDA's compiler
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name == "nvcc" else str(folder / name))
    return notes


CALLS = 3
"""Of the compiler in one build: two sources and the link."""


def calls(notes: Path) -> int:
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def test_a_second_build_is_found_in_the_cache(fake_compiler, tmp_path, capfd):
    first = build_plugin(tmp_path / "cache")
    assert first.exists()
    assert build_plugin(tmp_path / "cache") == first
    assert calls(fake_compiler) == CALLS
    assert capfd.readouterr() == ("", "")  # of a library


def test_a_command_says_that_it_builds(fake_compiler, tmp_path, capsys):
    log_to(make_console())
    build_plugin(tmp_path / "cache")
    assert re.fullmatch(r"building \S+\.so with \S+ \(once\)\n", capsys.readouterr().out)


def test_other_flags_sources_or_dali_build_anew(fake_compiler, tmp_path, monkeypatch):
    built = {build_plugin(tmp_path / "cache")}
    monkeypatch.setattr(build, "_HOST_ONLY", ["-march=native"])
    built.add(build_plugin(tmp_path / "cache"))
    monkeypatch.setattr("nvidia.dali.__version__", "0.0")
    built.add(build_plugin(tmp_path / "cache"))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    built.add(build_plugin(tmp_path / "cache"))
    assert len(built) == 4
    assert calls(fake_compiler) == 4 * CALLS


def test_a_build_for_named_processors_serves_every_machine(fake_compiler, tmp_path, monkeypatch):
    """As for the image of a container, which is built on a machine that will not run it."""
    native = build_plugin(tmp_path / "cache")
    monkeypatch.setenv("FASTFGSSL_MARCH", "x86-64-v3")
    built = build_plugin(tmp_path / "cache")
    assert built != native
    assert calls(fake_compiler) == 2 * CALLS
    monkeypatch.setattr(build, "_processor", lambda: "another")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert build_plugin(tmp_path / "cache") == built
    flags = " ".join(flag for command in build._build_commands(PLUGIN).compile for flag in command)
    assert "-march=x86-64-v3" in flags
    assert "-march=native" not in flags
    assert "-ffp-contract=off" in flags
    assert len(build._architecture_flags()) == len(build._CUDA_ARCHITECTURES)
    monkeypatch.delenv("FASTFGSSL_MARCH")
    assert build._architecture_flags() == ["-gencode=arch=compute_90,code=sm_90"]


def test_a_failing_compiler_is_an_error_that_shows_its_words(fake_compiler, tmp_path):
    compiler = tmp_path / "bin" / "g++"
    compiler.write_text(compiler.read_text().replace("sleep 1", "echo 'x.cc:1: error: out of luck' >&2; exit 1"))
    with pytest.raises(BuildError, match=r"g\+\+ failed: x.cc:1: error: out of luck") as caught:
        build_plugin(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "out of luck" in (tmp_path / "cache" / "build_failed.log").read_text()
    assert not list((tmp_path / "cache").glob("*.so"))


def test_an_nvcc_that_fails_is_an_error_and_no_cpu_build(fake_compiler, tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit; echo 'nvcc fatal error: no licence' >&2; exit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(tmp_path / "bin" / name))
    with pytest.raises(BuildError, match="nvcc failed: nvcc fatal error: no licence"):
        build_plugin(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("9", r"g\+\+ 9 is too old: install g\+\+ 11 or newer"),
        ("", r"g\+\+ is no C\+\+ compiler"),
        (None, r"no C\+\+ compiler"),
    ],
)
def test_a_compiler_that_is_missing_or_too_old_is_named(fake_compiler, tmp_path, monkeypatch, version, message):
    if version is None:
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
    else:
        compiler = tmp_path / "bin" / "g++"
        compiler.write_text(compiler.read_text().replace("echo 12", f"echo {version}"))
    with pytest.raises(BuildError, match=message):
        build_plugin(tmp_path / "cache")


@pytest.mark.parametrize("command", [" ", 'g++ "'])
def test_cxx_that_is_no_command_is_named(fake_compiler, tmp_path, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(BuildError, match=f"^CXX = {re.escape(repr(command))}: ") as caught:
        build_plugin(tmp_path / "cache")
    assert "\n" not in str(caught.value)


RANK = """
import shutil, sys
from pathlib import Path
from fastfgssl.kernels import build
from fastfgssl.kernels import cache as cache_of
which = shutil.which
build.shutil.which = lambda name: None if name == "nvcc" else which(name)
print(build.build(build.PLUGIN, Path(sys.argv[1])))
"""


def test_ranks_that_start_together_build_once(fake_compiler, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    ranks = [Command(tmp_path / "rank.py", tmp_path / "cache") for _ in range(3)]
    paths = {rank.communicate(timeout=60)[0].strip() for rank in ranks}
    assert len(paths) == 1
    assert Path(paths.pop()).read_text() == "library\n"
    assert calls(fake_compiler) == CALLS


@pytest.mark.parametrize("damage", ["cut", "no checksum", *further("empty", "zeros")])
def test_a_damaged_library_is_built_anew(fake_compiler, tmp_path, damage):
    """Loaded as it is, a library that was cut short ends the process with a bus error."""
    path = build_plugin(tmp_path / "cache")
    whole = path.read_bytes()
    if damage == "no checksum":
        cache_of.checksum_file(path).unlink()
    else:
        path.write_bytes({"cut": whole[:3], "empty": b"", "zeros": bytes(len(whole))}[damage])
    assert build_plugin(tmp_path / "cache") == path
    assert path.read_bytes() == whole
    assert calls(fake_compiler) == 2 * CALLS


@pytest.mark.parametrize("what", ["folder", "library", "checksum"])
@pytest.mark.parametrize("how", ["others may write it", *further("another owns it")])
def test_what_others_could_have_put_in_the_cache_is_not_loaded(fake_compiler, tmp_path, monkeypatch, what, how):
    cache = tmp_path / "cache"
    path = build_plugin(cache)
    bad = {"folder": cache, "library": path, "checksum": cache_of.checksum_file(path)}[what]
    if how == "others may write it":
        bad.chmod(bad.stat().st_mode | 0o020)
    elif os.getuid() == 0:
        os.chown(bad, 4711, -1)
    else:
        pytest.skip("only root can give files away")
    if what != "folder":
        assert build_plugin(cache) == path  # built anew
        assert calls(fake_compiler) == 2 * CALLS
        assert cache_of.is_own(bad)
        return
    with pytest.raises(
        BuildError, match=rf"^cannot build in the cache {cache}: others own it or may write there.*CACHE$"
    ):
        build_plugin(cache)
    monkeypatch.setenv("FASTFGSSL_CACHE", str(cache))
    monkeypatch.setattr(cache_of.tempfile, "tempdir", str(tmp_path))
    assert build_plugin().parent == tmp_path / f"fastfgssl-{os.getuid()}"


@pytest.mark.parametrize("umask", [0o002, *further(0o077)])
def test_a_cache_is_this_users_whatever_the_umask(fake_compiler, tmp_path, umask):
    before = os.umask(umask)
    try:
        path = build_plugin(tmp_path / "cache")
        modes = {file.name: file.stat().st_mode & 0o777 for file in (path.parent, path)}
        assert modes == {"cache": 0o755 & ~umask, path.name: 0o644 & ~umask}
        assert build_plugin(tmp_path / "cache") == path
    finally:
        os.umask(before)
    assert calls(fake_compiler) == CALLS


def test_what_a_killed_build_has_left_is_removed(fake_compiler, tmp_path):
    left = tmp_path / "cache" / "building-1"
    left.mkdir(parents=True)
    build_plugin(tmp_path / "cache")
    assert not left.exists()


def test_a_file_system_without_locks_builds_all_the_same(fake_compiler, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache_of.fcntl, "flock", refuse)
    assert build_plugin(tmp_path / "cache").exists()


def test_where_the_home_folder_is_read_only_a_folder_of_this_user_alone_serves(fake_compiler, tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # the tests may run as root, who may write everywhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FASTFGSSL_CACHE", raising=False)
    monkeypatch.setattr(cache_of.tempfile, "tempdir", str(tmp_path))
    built = build_plugin()
    own = tmp_path / f"fastfgssl-{os.getuid()}"
    assert built.parent == own
    assert own.stat().st_mode & 0o777 == 0o700
    assert build_plugin() == built
    own.chmod(0o777)  # what lies there may be another's
    with pytest.raises(BuildError, match=r"cannot build in the cache .*home/fastfgssl: .*FASTFGSSL_CACHE"):
        build_plugin()


def test_a_user_without_a_home_builds_in_a_folder_of_their_own(tmp_path, monkeypatch):
    """As that of a container who has no name; `~` is no folder here."""
    for name in ("HOME", "XDG_CACHE_HOME", "FASTFGSSL_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_name(user: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", no_name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (own,) = cache_of.folders()
    assert own == tmp_path / f"fastfgssl-{os.getuid()}"
    own.chmod(0o777)
    with pytest.raises(BuildError, match=r"no home folder .* set FASTFGSSL_CACHE"):
        build_plugin()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASTFGSSL_CACHE", "~/cache")
    assert cache_of.folders()[0] == tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTFGSSL_CACHE", ".")
    assert str(cache_of.folders()[0]) == str(tmp_path)  # the loader takes no name without a slash


def test_a_library_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    """As from a file system that allows no execution."""
    (tmp_path / "library.so").write_text("no library")
    monkeypatch.setattr(build, "build", lambda library: tmp_path / "library.so")
    build.load_tensors.cache_clear()
    with pytest.raises(BuildError, match=r"cannot load .*library.so: .*; set FASTFGSSL_CACHE") as caught:
        build.load_tensors()
    assert "\n" not in str(caught.value)


def test_an_update_of_the_compiler_behind_another_command_builds_anew(fake_compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "env g++")
    before = build_plugin(tmp_path / "cache")
    compiler = tmp_path / "bin" / "g++"
    compiler.write_text(compiler.read_text().replace('echo "g++ 12"', 'echo "g++ 12.1"'))
    assert build_plugin(tmp_path / "cache") != before


def test_a_cache_that_cannot_be_made_is_named(fake_compiler, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot build in the cache .*file/cache: .*FASTFGSSL_CACHE"):
        build_plugin(tmp_path / "file" / "cache")
