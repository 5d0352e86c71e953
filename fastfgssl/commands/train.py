"""Pretrains a network on a prepared archive. Running the same command again goes on where it stopped.

python tools/train.py --config configs/paper.yaml data.path=ARCHIVE output=runs/first
torchrun --standalone --nproc-per-node=8 tools/train.py --config configs/paper.yaml data.path=ARCHIVE
"""

from __future__ import annotations

import argparse

from fastfgssl.runtime.console import Parser


def main() -> int:
    from fastfgssl.config.files import load_config
    from fastfgssl.config.help import describe_keys

    parser = Parser(
        description=__doc__,
        epilog=f"keys, set in the file or as KEY=VALUE:\n{describe_keys()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, such as configs/paper.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)

    from fastfgssl.training.trainer import pretrain  # imports torch and DALI: after the arguments have been found good

    outcome = pretrain(config)
    return 128 + outcome.stopped_by if outcome.stopped_by else 0
