"""Pretrains a network on a prepared archive. Running the same command again goes on where it stopped.

fastfgssl train --config paper data.path=ARCHIVE output=runs/first
torchrun --standalone --nproc-per-node=8 -m fastfgssl train --config paper data.path=ARCHIVE output=runs/first
"""

from __future__ import annotations

import argparse

from fastfgssl.runtime.console import Parser, log_to, make_console


def main() -> int:
    from fastfgssl.config.files import load_config
    from fastfgssl.config.help import describe_keys

    parser = Parser(
        description=__doc__,
        epilog=f"keys, set in the file or as KEY=VALUE:\n{describe_keys()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE|NAME", help="YAML file, or a name such as paper")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)

    # torch and DALI, after the arguments have been found good
    from fastfgssl.pretraining import pretrain
    from fastfgssl.runtime.signals import StopRequest
    from fastfgssl.training.display import Terminal

    console = make_console()
    log_to(console)
    with StopRequest() as request:
        outcome = pretrain(config, hooks=[Terminal(console)], stop_signal=lambda: request.signal_number)
    return 128 + outcome.stopped_by if outcome.stopped_by else 0
