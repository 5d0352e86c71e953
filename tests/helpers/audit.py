"""Compares requirements.lock with the known vulnerabilities, by pip-audit, where it and its database can be had.

`make check` calls it. Exits with 1 if there are some; a line says so where it cannot be told.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LOCK = Path(__file__).parents[2] / "requirements.lock"
SECONDS = 120


class Audit(NamedTuple):
    audited: int
    """Packages that the database knows."""
    left_out: int
    vulnerabilities: list[str]
    """A line each."""


def read_audit(printed: str) -> Audit:
    """What pip-audit prints as JSON. Raises ValueError if that is none."""
    packages = json.loads(printed)["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in known
        for found in package["vulns"]
    ]
    return Audit(len(known), len(packages) - len(known), lines)


def main() -> int:
    nothing_is_known = "requirements.lock is not compared with known vulnerabilities"
    if importlib.util.find_spec("pip_audit") is None:
        print(f"pip-audit is not installed: {nothing_is_known}")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        audit = read_audit(done.stdout)
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        print(f"pip-audit cannot reach its database: {nothing_is_known}")
        return 0
    if not audit.audited:
        print(f"pip-audit's database knows none of the packages: {nothing_is_known}")
        return 0
    left_out = f"; {audit.left_out} are unknown to the database" if audit.left_out else ""
    print("\n".join(audit.vulnerabilities) or f"no known vulnerability in {audit.audited} packages{left_out}")
    return 1 if audit.vulnerabilities else 0


if __name__ == "__main__":
    sys.exit(main())
