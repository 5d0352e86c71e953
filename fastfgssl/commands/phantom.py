"""Makes dermoscopy-like images to try everything on, in classes that differ in fine texture alone.

fastfgssl phantom images --images 1000
"""

from __future__ import annotations

import shlex

from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.phantom_scene import TEXTURES
from fastfgssl.runtime.console import Parser, ProgressLine, make_console, print_line
from fastfgssl.runtime.files import user_path


def main() -> None:
    parser = Parser(description=f"{__doc__}\nThe classes: {', '.join(TEXTURES)}.")
    parser.add_argument("out", type=user_path, metavar="OUT", help="folder to make: images/ and labels.csv")
    parser.add_argument("--images", type=int, metavar="N", required=True, help="how many")
    parser.add_argument("--width", type=int, metavar="PIXELS", default=600, help="default %(default)s")
    parser.add_argument("--height", type=int, metavar="PIXELS", default=450, help="default %(default)s")
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="another seed, other images (default 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    args = parser.parse_args()

    with ProgressLine(make_console(stderr=True)) as line:
        write_phantoms(
            args.out,
            args.images,
            seed=args.seed,
            width=args.width,
            height=args.height,
            workers=args.workers,
            on_progress=lambda done: line.update(done, args.images),
        )
    out, archive, labels = (
        shlex.quote(str(path)) for path in (args.out, f"{args.out}-archive", args.out / "labels.csv")
    )
    console = make_console()
    print_line(console, f"{args.images:,} images are in {out}")
    print_line(console, f"next: fastfgssl prepare {out} --out {archive} --labels {labels}")
