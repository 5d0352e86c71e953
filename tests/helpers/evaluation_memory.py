"""Measures the peak memory of the protocols on many random features, which are written to $TMPDIR as features are.

    python tests/helpers/evaluation_memory.py --protocol knn --images 1000000 --dim 1024 --queries 4096

Peak memory depends neither on the number of queries beyond 4,096, nor on the probe's iterations and candidates of C, of
which one is tried.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from fastfgssl.evaluation import linear_probe, logistic_regression
from fastfgssl.evaluation.feature_rows import FeatureRows
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.matching import matching_accuracy
from fastfgssl.runtime.environment import peak_memory

CLASSES = 8
BATCH = 4096


def random_rows(count: int, dim: int) -> FeatureRows:
    rows = FeatureRows()
    for start in range(0, count, BATCH):
        rows.append(torch.randn(min(BATCH, count - start), dim))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=("knn", "matching", "linear"), required=True)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=1000, help="most iterations of each fit of the probe")
    parser.add_argument("--limit-gb", type=float, default=4.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    features = random_rows(args.images, args.dim)
    queries = random_rows(args.queries, args.dim)
    labels = np.arange(args.images) % CLASSES
    start, before = time.monotonic(), peak_memory() / 1e9
    if args.protocol == "knn":
        knn_probabilities(features, torch.from_numpy(labels), queries, num_classes=CLASSES)
    elif args.protocol == "matching":
        # the first queries against the keys of all images
        matching_accuracy(queries, features)
    else:
        logistic_regression._MAX_ITERATIONS = args.iterations
        linear_probe.STRENGTHS = linear_probe.STRENGTHS[:1]
        linear_probe.linear_probe(features, labels, np.arange(args.images), queries)
    peak = peak_memory() / 1e9
    print(
        f"{args.protocol}: {args.images} images x {args.dim} features ({4e-9 * args.images * args.dim:.2f} GB):"
        f" peak {peak:.2f} GB (before {before:.2f} GB), {time.monotonic() - start:.0f} s"
    )
    sys.exit(peak > args.limit_gb)


if __name__ == "__main__":
    main()
