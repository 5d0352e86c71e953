"""Says what holds training back on this machine, and what would help; or plans a run on many GPUs.

fastfgssl doctor --config paper data.path=ARCHIVE output=runs/first
fastfgssl doctor --plan gpus=64 images=50e6 epochs=100 --config paper data.path=ARCHIVE

Each part of the trainer is timed with the configuration and archive that are given; settings are suggested only where
they were tried and were faster by more than the noise, as overrides to paste. Without --config, a plan is made for the
configuration `paper` on generated images of 600 x 450 (without a GPU in float32). Run it alone, without torchrun, and
while nothing else runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fastfgssl.runtime.console import Parser, make_console, print_line, print_table
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import check_writable, user_path, write_json

if TYPE_CHECKING:
    from fastfgssl.config.schema import Config


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", metavar="FILE|NAME", help="YAML file, or a name such as paper")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    parser.add_argument("--seconds", type=float, default=3.0, help="that each part is timed for (default %(default)g)")
    parser.add_argument("--ranks", type=int, metavar="N", help="of this machine (default: its GPUs, or 1)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="writes everything as JSON too")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="what a run of gpus=, images=, epochs=, and link= (bytes/s that a GPU sends, default 50e9) takes",
    )
    arguments = parser.parse_args()
    if arguments.config is None and not arguments.plan:
        parser.error("the following arguments are required: --config")
    require_alone("a diagnosis", advice="; --ranks says how many to plan for")
    if not 0.05 <= arguments.seconds <= 600:
        raise UserError(f"--seconds {arguments.seconds:g}: must be from 0.05 to 600")
    if arguments.json:
        check_writable(arguments.json)  # before minutes go into what could not be kept

    from fastfgssl.config.files import load_config
    from fastfgssl.data.opening import open_archive
    from fastfgssl.doctor import plan, report
    from fastfgssl.doctor.diagnosis import diagnose, examine_rates, planned_world
    from fastfgssl.doctor.disk import measure_writing
    from fastfgssl.doctor.machine import examine, examine_images
    from fastfgssl.runtime.distributed import start_world

    console, beside = make_console(), make_console(stderr=True)

    def say(what: str) -> None:
        print_line(beside, f"{what} ...")

    asked, overrides = plan.split_words(arguments.words) if arguments.plan else ([], arguments.words)
    request = plan.parse_request(asked) if arguments.plan else None
    configured: AbstractContextManager[Config]
    if arguments.config is None:
        configured = plan.generated_run(overrides, say)
    else:
        configured = nullcontext(load_config(arguments.config, overrides))
    with configured as config, start_world(config.train.device) as alone:
        archive, world = open_archive(config.data), planned_world(alone, arguments.ranks, config)
        written = measure_writing(Path(config.output), arguments.seconds)
        findings = [*examine(world), examine_images(config, archive, world)]
        print_table(console, report.machine_rows(findings, written, config), title="this machine")
        found = examine_rates(config, archive, world, arguments.seconds, say)
        if request is None:
            shown = report.report_diagnosis(diagnose(found, say))
        else:
            shown = report.report_plan(found, plan.make_plan(request, plan.device_of(found)))
    if arguments.json:
        write_json(arguments.json, report.measured_record(findings, written, found) | shown.record)
    for title, rows in shown.tables.items():
        print_table(console, rows, title=title)
    for line in shown.lines:
        print_line(console, line)
