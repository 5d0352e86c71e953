"""Compares requirements.lock with the known vulnerabilities, by pip-audit, where it and its database can be had.

`make check` calls it. Exits with 1 if there are some; a line says so where it cannot be told.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
SECONDS = 60


def vulnerabilities(printed: str) -> list[str]:
    """A line each, of what pip-audit prints as JSON. Raises ValueError if that is none."""
    return [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in json.loads(printed)["dependencies"]
        for found in package.get("vulns", ())
    ]


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit is not installed: requirements.lock is not compared with known vulnerabilities")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        found = vulnerabilities(done.stdout)
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        print("pip-audit cannot reach its database: requirements.lock is not compared with known vulnerabilities")
        return 0
    print("\n".join(found) or "no known vulnerability in requirements.lock")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
