"""Compiles every Triton kernel for GPUs that need not be here, and prints what fails.

    python tests/helpers/compile_triton.py [ARCHITECTURE ...]

Without arguments for all that are supported, a minute each; test_triton_compiles.py has one of them compiled. Triton
makes constants of integers that are 1 and of arguments that are None: each integer is tried as 1, too, since that is
what its interpreter does not do. Such a kernel fails where Triton makes its own representation of the Python code, so
that is as far as it is taken.
"""

from __future__ import annotations

import sys

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend

from fastfgssl.kernels.cross_correlation import columns_triton_kernel as loss
from fastfgssl.kernels.cross_correlation import products_triton_kernel as products
from fastfgssl.kernels.jigsaw import triton_kernel as jigsaw

ARCHITECTURES = (80, 90, 100)
TILE = {"ROWS": 32, "COLUMNS": 32}
F32, F16, BF16 = "*fp32", "*fp16", "*bf16"
EMBEDDINGS = [(F32, F32), (F16, F16), (BF16, BF16), (F16, F32)]  # dtypes of the two views


def pointers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, F32)


def floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "fp32")


# kernel: signatures of its pointers and floats, its integers, its constants
KERNELS = [
    *((loss._moments_kernel, {"x1": x1, "x2": x2} | pointers("moments"), ("N", "D", "chunk_rows"), TILE)
      for x1, x2 in EMBEDDINGS),
    *((loss._standardise_kernel,
       {"x1": x1, "x2": x2, "z1": z, "z2": z}
       | pointers("moments", "statistics1", "statistics2", "slope", "terms")
       | floats("eps", "on_weight", "off_weight", "shift_weight"), ("N", "D", "chunk_rows"), TILE | {"CHUNKS": chunks})
      for (x1, x2), z, chunks in zip(EMBEDDINGS, (F32, F32, BF16, BF16), (16, 1, 16, 1), strict=True)),
    *((products._inner_product_and_shift_kernel,
       {"shifted1": shifted, "shifted2": shifted} | pointers("k1", "k2", "shifts", "shares") | floats("weight"),
       ("first_row", "n", "N", "blocks"), {"NUMBERS": 1024})
      for shifted in (F32, BF16)),
    *((products._drop_diagonal_kernel, {"rounded": rounded} | pointers("m", "shares"), ("start", "s", "D", "blocks"),
       {"NUMBERS": 1024})
      for rounded in (F32, BF16)),
    *((loss._contract_kernel,
       {"x1": x1, "x2": x2} | floats("scale")
       | pointers("gradient1", "gradient2", "statistics1", "statistics2", "slope", "shifts", "sums"),
       ("n", "D", "chunk_rows"), TILE | {"SHIFTED": shifted})
      for (x1, x2), shifted in zip(EMBEDDINGS, (True, False, True, False), strict=True)),
    (loss._add_up_kernel, pointers("shares", "sums", "total"), ("num_shares", "chunks", "D"),
     {"SHARES": 1024, "CHUNKS": 16, "NUMBERS": 128}),
    *((loss._finish_kernel,
       {"x1": x1, "x2": x2} | pointers("gradient1", "gradient2", "statistics1", "statistics2", "sums")
       | floats("factor"), ("n", "N", "D"), TILE)
      for x1, x2 in EMBEDDINGS),
    (loss._loss_kernel,
     pointers("squared_norm", "totals", "loss", "terms") | floats("on_weight", "off_weight", "diagonal_weight"),
     (), {}),
    *((jigsaw._jigsaw_kernel, {"source": word, "permutation": "*i64", "target": word}, ("planes_per_image",),
       {"words": 4096, "row_words": 64, "grid": 4, "tile_height": 16, "tile_words": 16, "BLOCK": 1024})
      for word in ("*i64", "*i32", "*i16", "*u8")),
]  # fmt: skip


def represent(source: ASTSource, target: GPUTarget) -> None:
    """Only the first of the compiler's stages."""
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({})
    source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


def main() -> None:
    architectures = [int(word) for word in sys.argv[1:]] or ARCHITECTURES
    for kernel, signature, integers, constants in KERNELS:
        for one in (None, *integers):
            chosen = constants | ({one: 1} if one else {})
            types = signature | dict.fromkeys(integers, "i32") | dict.fromkeys(chosen, "constexpr")
            types = {name: types[name] for name in kernel.arg_names}
            values = {(kernel.arg_names.index(name),): value for name, value in chosen.items()}
            for architecture in architectures:
                source, target = ASTSource(kernel, types, values, {}), GPUTarget("cuda", architecture, 32)
                try:
                    compile(source, target=target) if one is None else represent(source, target)
                except Exception as error:
                    print(f"{kernel.__name__}, {one} = 1, sm_{architecture}: {type(error).__name__}: {error}")
    print(f"compiled {len(KERNELS)} kernels")


if __name__ == "__main__":
    main()
