"""Says what holds training back on this machine, and what would help; or plans a run on many GPUs.

python tools/doctor.py --config configs/paper.yaml data.path=ARCHIVE output=runs/first
python tools/doctor.py --plan gpus=64 images=50e6 epochs=100 --config configs/paper.yaml data.path=ARCHIVE

Each part of the trainer is timed with the configuration and archive that are given; settings are suggested only where
they were tried and were faster by more than the noise. Without --config, a plan is made for configs/paper.yaml on
generated images of 600 x 450 (without a GPU in float32). Run it alone, without torchrun, and while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastfgssl.config.schema import Config
from fastfgssl.runtime.console import Parser
from fastfgssl.runtime.environment import rank_environment
from fastfgssl.runtime.errors import UserError, check_writable

PAPER = "paper"
PLAN_IMAGES = 64


def main() -> None:
    arguments = parse_arguments()
    from fastfgssl.config.files import load_config
    from fastfgssl.doctor.overrides import check_applicable
    from fastfgssl.doctor.plan import parse_request  # imports torch

    words = arguments.plan or []
    request = parse_request([word for word in words if not _is_override(word)]) if words else None
    overrides = [*arguments.overrides, *(word for word in words if _is_override(word))]
    if arguments.config is None and request is None:
        raise UserError("the following arguments are required: --config; see --help")
    if arguments.apply and request is not None:
        raise UserError("--apply: a plan suggests no settings; give one of --plan and --apply")
    if rank_environment().size > 1:
        raise UserError("the doctor runs alone: start it without torchrun; --ranks tells how many ranks are planned")
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: must be at least 1")
    if not 0.05 <= arguments.seconds <= 600:
        raise UserError(f"--seconds {arguments.seconds:g}: must be from 0.05 to 600")
    if arguments.json is not None:
        check_writable(arguments.json)  # before minutes go into what could not be kept
    if arguments.apply:
        check_applicable(Path(arguments.config))
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.config is None:
            overrides = [*_defaults(Path(scratch)), *overrides]
        config = load_config(arguments.config or PAPER, overrides)
        if Path(config.data.path) == Path(scratch) / "archive":
            _generate(Path(scratch))
        record = run(arguments, config, overrides, request)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file, as for tools/train.py")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    parser.add_argument("--seconds", type=float, default=3.0, help="that each part is timed for (default %(default)g)")
    parser.add_argument("--ranks", type=int, metavar="N", help="of this machine (default: its GPUs, or 1)")
    parser.add_argument("--apply", action="store_true", help="writes the suggested settings into the file of --config")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes everything as JSON too")
    parser.add_argument(
        "--plan",
        nargs="+",
        metavar="KEY=VALUE",
        help="gpus=, images=, epochs=, and link= (bytes/s that a GPU sends, default 50e9): what such a run takes",
    )
    return parser.parse_intermixed_args()


def _is_override(word: str) -> bool:
    """Whether a word that stands behind --plan sets a key of the configuration: one with a section, or at its top."""
    key = word.partition("=")[0]
    return "." in key or key in {field.name for field in fields(Config)}


def _defaults(folder: Path) -> list[str]:
    """Overrides of a plan without a configuration: an archive that is to be generated in `folder`, and what fits."""
    import torch

    words = [f"data.path={folder / 'archive'}", f"output={folder / 'run'}"]
    if not torch.cuda.is_available():
        words.append("train.precision=float32")  # a CPU takes a minute for a step in the file's float16
    return words


def _generate(folder: Path) -> None:
    from fastfgssl.archive.phantom import write_phantoms
    from fastfgssl.archive.prepare import Options, prepare

    _say("generating images")
    write_phantoms(folder / "images", PLAN_IMAGES)
    prepare(Options(sources=[folder / "images"], out=folder / "archive"))


def run(arguments: argparse.Namespace, config, overrides: list[str], request) -> dict[str, Any]:
    """Measures and prints; returns everything as an object."""
    from fastfgssl.archive.manifest import Archive
    from fastfgssl.doctor import report
    from fastfgssl.doctor.diagnosis import diagnose, examine_rates, planned_world
    from fastfgssl.doctor.disk import measure_writing
    from fastfgssl.doctor.machine import examine
    from fastfgssl.doctor.overrides import apply_overrides
    from fastfgssl.doctor.plan import Device, exchanges, make_plan
    from fastfgssl.runtime.distributed import start_world

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file does not wrap
    archive = Archive.open(config.data.path)
    with start_world(config.train.device) as alone:
        ranks = arguments.ranks or report.default_ranks(alone)
        config.train.check_world_size(ranks)
        world = planned_world(alone, ranks)
        written = measure_writing(Path(config.output), arguments.seconds)
        findings = examine(world)
        _table(console, "this machine", report.machine_rows(findings, written, config))
        found = examine_rates(config, archive, world, arguments.seconds, _say)
        record = report.measured_record(findings, written, found)
        if request is not None:
            _table(console, "measured", report.rate_rows(found))
            device = Device(
                batch=found.bench.spec.batch_size,
                step=found.measured.step.value,
                graph=found.measured.graph.value,
                decode=found.measured.decode.value,
                bytes_per_image=found.reading.bytes_per_sample,
                shares_cores=found.measured.shares_cores,
            )
            lines = make_plan(request, device, exchanges(found.step.objective.updates, config), config)
            title = f"plan: {request.gpus} GPUs, {request.images:,.0f} images, {request.epochs:g} epochs"
            _table(console, title, [(line.name, line.text, line.formula) for line in lines])
            if world.device.type == "cpu":
                console.print("\nnote: measured on a CPU; run it on a machine of the kind that is planned for")
            return record | {"plan": [line._asdict() for line in lines]}
        diagnosis = diagnose(found, _say)
    _table(console, "measured", report.rate_rows(found, diagnosis))
    for line in report.advice_lines(diagnosis):
        console.print(Text(line), soft_wrap=True)
    applied = []
    if arguments.apply:
        if diagnosis.overrides:
            applied = apply_overrides(Path(arguments.config), diagnosis.overrides, overrides)
        for line in applied or ["nothing to apply"]:
            console.print(Text(f"{arguments.config}: {line}"), soft_wrap=True)
    return record | report.diagnosis_record(diagnosis) | {"applied": applied}


def _table(console: Console, title: str, rows: list[tuple[str, ...]]) -> None:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a Text, because paths may look like markup
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)
