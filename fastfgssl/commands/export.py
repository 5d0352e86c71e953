"""Writes a network for another library: torchvision, timm, safetensors, ONNX or torch.export.

fastfgssl export --checkpoint runs/first/checkpoints/step_000001000.pt --format torchvision --out backbone.pth
fastfgssl export --checkpoint runs/tuned/checkpoints/best.pt --format onnx --out classifier.onnx --scores scores.json

The file is read back by the library that it is for, and compared with the network. Beside it stand OUT.md, a model card
with code that loads the file and prepares images, and OUT.preprocessing.json.
"""

from __future__ import annotations

from fastfgssl.runtime.console import Parser, make_console, print_table
from fastfgssl.runtime.files import user_path


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="FILE",
        help="or a run's folder, for its newest checkpoint",
    )
    parser.add_argument(
        "--format", required=True, choices=("torchvision", "timm", "safetensors", "onnx", "torch.export")
    )
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="FILE", help=".pth, .safetensors, .onnx or .pt2"
    )
    parser.add_argument(
        "--part",
        choices=("backbone", "hierarchy", "classifier"),
        help="hierarchy: what all heads are given (default: the classifier where there is one, else the backbone)",
    )
    parser.add_argument(
        "--scores",
        type=user_path,
        action="append",
        default=[],
        metavar="JSON",
        help="of `fastfgssl evaluate --json`, for the model card; may be given several times",
    )
    args = parser.parse_args()

    from fastfgssl.export.checkpoint import export_checkpoint

    exported = export_checkpoint(args.checkpoint, args.format, args.out, part=args.part, scores=args.scores)
    rows = [
        (exported.part, str(exported.file)),
        ("model card", str(exported.card)),
        ("preprocessing", str(exported.preprocessing)),
        ("difference", f"{exported.difference:.1e} of an output's largest value, on batches of 1, 2 and 7"),
    ]
    print_table(make_console(), [*rows, *(("note", remark) for remark in exported.remarks)])
