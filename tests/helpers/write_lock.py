"""Writes requirements.lock from what pip says that it would install; `make lock` calls it.

python write_lock.py REPORT > requirements.lock, where REPORT is of `pip install --dry-run --ignore-installed`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HEAD = """\
# What `make` installs for Python 3.11 on Linux x86-64, CUDA's libraries included: each package with its version and the
# checksum of its file. `make lock` writes it anew; `make locked` installs from it, and nothing else.
"""


def main(report: Path) -> None:
    lines = []
    for item in json.loads(report.read_text())["install"]:
        if "dir_info" in item["download_info"]:  # this package itself
            continue
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{digest}\n")
    print(HEAD, *sorted(lines), sep="", end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
