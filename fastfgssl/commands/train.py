"""Pretrains a network on a prepared archive. Running the same command again goes on where it stopped.

fastfgssl train --config paper data.path=ARCHIVE output=runs/first
torchrun --standalone --nproc-per-node=8 -m fastfgssl train --config paper data.path=ARCHIVE output=runs/first
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastfgssl.runtime.console import Parser, log_to, make_console, print_line
from fastfgssl.runtime.environment import rank_environment

if TYPE_CHECKING:
    from fastfgssl.config.schema import Config
    from fastfgssl.training.trainer import Outcome


def main() -> int:
    from fastfgssl.config.files import load_config

    parser = config_parser(__doc__)
    add_replay(parser)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)

    from fastfgssl.pretraining import pretrain, replay  # torch and DALI, after the arguments have been found good

    if arguments.replay is not None:
        return replay_shown(replay, config, arguments.replay)
    return exit_code(run_shown(pretrain, config, "pretraining"))


def config_parser(description: str | None) -> Parser:
    """Takes --config and overrides; its help explains every key."""
    from fastfgssl.config.help import describe_keys

    parser = Parser(description=description, epilog=f"keys, set in the file or as KEY=VALUE:\n{describe_keys()}")
    parser.add_argument("--config", required=True, metavar="FILE|NAME", help="YAML file, or a name such as paper")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    return parser


def add_replay(parser: Parser) -> None:
    """Takes --replay, of which `replay_shown` makes something."""
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="makes this step again, and says where it was not finite; no more"
    )


def replay_shown(replay: Callable[[Config, int], str], config: Config, step: int) -> int:
    """Prints what comes of a step of `pretrain` or `finetune` that is made again; the exit code."""
    console = make_console()
    log_to(console)
    told = replay(config, step)
    rank, size, *_ = rank_environment()
    print_line(console, f"rank {rank}: {told}" if size > 1 else told)  # each of its own images
    return 0


def run_shown(verb: Callable[..., Outcome], config: Config, name: str) -> Outcome:
    """Runs `pretrain` or `finetune`, shows what it does, and lets a signal stop it.

    What a disk or a server has ended that may be back has an exit code of its own.
    """
    from fastfgssl.runtime.errors import STORAGE_EXIT_CODE, UserError
    from fastfgssl.runtime.signals import StopRequest
    from fastfgssl.training.display import Terminal
    from fastfgssl.training.saving import goes_on

    console = make_console()
    log_to(console)
    try:
        with StopRequest() as request:
            return verb(config, hooks=[Terminal(console, name)], stop_signal=lambda: request.signal_number)
    except UserError as error:
        if goes_on(config, error):
            error.exit_code = STORAGE_EXIT_CODE
        raise


def exit_code(outcome: Outcome) -> int:
    return 128 + outcome.stopped_by if outcome.stopped_by else 0
