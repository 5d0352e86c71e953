"""Trains a classifier on labelled images, from a pretrained network or any other. The same command again goes on.

fastfgssl finetune --config isic2018 model.weights=CHECKPOINT data.path=ARCHIVE output=runs/lesions
fastfgssl finetune --config isic2018 --folds 5 data.path=ARCHIVE output=runs/lesions
torchrun --standalone --nproc-per-node=8 -m fastfgssl finetune --config isic2018 data.path=ARCHIVE

model.weights is a checkpoint of `fastfgssl train`, a state dict of torchvision or timm, imagenet, or none. The weights
that did best on the validation images are kept as OUTPUT/checkpoints/best.pt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastfgssl.commands.train import add_replay, config_parser, exit_code, replay_shown, run_shown
from fastfgssl.runtime.errors import UserError


def main() -> int:
    from fastfgssl.config.files import load_config

    parser = config_parser(__doc__)
    add_replay(parser)
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="trains K times, each time validating on another part, into OUTPUT/fold-I",
    )
    arguments = parser.parse_args()
    if arguments.folds is not None and arguments.folds < 2:
        raise UserError(f"--folds {arguments.folds}: must be 2 or more")
    if arguments.folds is not None and arguments.replay is not None:
        raise UserError("--replay: takes the run of one fold: its OUTPUT/fold-I/config.yaml, without --folds")
    config = load_config(arguments.config, arguments.overrides)

    from fastfgssl.finetuning import finetune, replay  # torch and DALI, after the arguments have been found good

    if arguments.replay is not None:
        return replay_shown(replay, config, arguments.replay)
    if arguments.folds is None:
        return exit_code(run_shown(finetune, config, "fine-tuning"))
    for fold in range(arguments.folds):
        data = replace(config.data, folds=arguments.folds, fold=fold)
        output = Path(config.output) / f"fold-{fold}"
        outcome = run_shown(finetune, replace(config, output=str(output), data=data), f"fold {fold}")
        if outcome.stopped_by:
            return exit_code(outcome)
    return 0
