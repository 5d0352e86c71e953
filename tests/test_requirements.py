"""requirements.lock: all that `make` installs, in the versions of constraints.txt, each by its checksum."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.audit import read_audit
from helpers.paths import ROOT

PLACE = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] for match in found}


def test_it_has_the_versions_of_the_constraints():
    versions = locked()
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for constraint in map(Requirement, lines):
        if constraint.marker is None or constraint.marker.evaluate(PLACE):
            assert versions[canonicalize_name(constraint.name)] in constraint.specifier, constraint


def test_it_has_all_that_setup_asks_for(monkeypatch):
    asked: dict = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **options: asked.update(options))
    namespace: dict = {"__name__": "setup"}
    code = compile((ROOT / "setup.py").read_text(), "setup.py", "exec")
    exec(code, namespace)
    versions = locked()
    for requirement in map(Requirement, [*asked["install_requires"], *asked["extras_require"]["test"]]):
        if requirement.marker is None or requirement.marker.evaluate(PLACE):
            name = canonicalize_name(requirement.name)
            assert requirement.specifier.contains(versions[name], prereleases=True), requirement


def test_what_pip_audit_finds_is_told():
    printed = (
        '{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2",'
        ' "vulns": [{"id": "CVE-1", "fix_versions": ["3"], "aliases": [], "description": ""}]},'
        ' {"name": "c", "skip_reason": "not on PyPI"}]}'
    )
    assert read_audit(printed) == (2, 1, ["b 2: CVE-1, fixed in 3"])
    with pytest.raises(ValueError):
        read_audit("")
