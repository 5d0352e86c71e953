"""Makes dermoscopy-like images to try everything on, in classes that differ in fine texture alone."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from fastfgssl.archive.phantom import TEXTURES, write_phantoms
from fastfgssl.runtime.console import Parser


def main() -> None:
    parser = Parser(description=f"{__doc__} The classes: {', '.join(TEXTURES)}.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make: images/ and labels.csv")
    parser.add_argument("--images", type=int, metavar="N", required=True, help="how many")
    parser.add_argument("--width", type=int, metavar="PIXELS", default=600, help="default %(default)s")
    parser.add_argument("--height", type=int, metavar="PIXELS", default=450, help="default %(default)s")
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="another seed, other images (default 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    args = parser.parse_args()

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("phantoms", total=args.images)
        write_phantoms(
            args.out,
            args.images,
            seed=args.seed,
            width=args.width,
            height=args.height,
            workers=args.workers,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    out, archive, labels = (
        shlex.quote(str(path)) for path in (args.out, f"{args.out}-archive", args.out / "labels.csv")
    )
    print(f"{args.images:,} images are in {out}\nnext: python tools/prepare.py {out} --out {archive} --labels {labels}")
