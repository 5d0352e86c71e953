"""Compiles every Triton kernel for GPUs that need not be here; prints what fails. Run by test_triton_compiles.py.

Triton makes constants of integers that are 1 and of arguments that are None: each integer is tried as 1, too, since
that is what its interpreter does not do.
"""

from __future__ import annotations

import itertools

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from fastfgssl.kernels.cross_correlation import triton_kernel as loss
from fastfgssl.kernels.jigsaw import triton_kernel as jigsaw

ARCHITECTURES = (80, 90, 100)
BLOCK = {"ROWS": 64, "COLUMNS": 32}
F32, F16, BF16 = "*fp32", "*fp16", "*bf16"

# kernel: signatures of its pointers and floats, its integers, its constants
KERNELS = [
    *((loss._standardise_kernel, {"x": x, "z": z, "how": F32, "eps": "fp32"}, ("N", "D"), BLOCK)
      for x, z in ((F32, F32), (F16, BF16), (BF16, BF16))),
    (loss._compare_kernel,
     {"x1": F32, "how1": F32, "x2": F16, "how2": F32, "slope": F32, "terms": F32}
     | dict.fromkeys(("eps", "on_weight", "off_weight"), "fp32"), ("N", "D"), BLOCK),
    *((loss._inner_product_and_shift_kernel,
       {"k1": F32, "k2": F32, "to1": to, "to2": to, "shifts": F32, "inner": F32}, ("first", "n", "N"),
       {"NUMBERS": 1024})
      for to in (F32, BF16)),
    *((loss._contract_kernel,
       {"product": F32, "x_own": x, "how_own": F32, "x_other": F32, "how_other": F32, "slope": F32, "shift": F32,
        "sums": F32, "scale": "fp32"}, ("n", "D"), BLOCK | {"HAS_SHIFT": shift})
      for x, shift in itertools.product((F32, BF16), (False, True))),
    (loss._finish_kernel, {"gradient": F32, "x_own": F16, "how_own": F32, "sums": F32, "factor": "fp32"},
     ("n", "N", "D"), BLOCK),
    *((jigsaw._jigsaw_kernel, {"source": word, "permutation": "*i64", "target": word}, ("planes_per_image",),
       {"words": 4096, "row_words": 64, "grid": 4, "tile_height": 16, "tile_words": 16, "BLOCK": 1024})
      for word in ("*i64", "*i32", "*i16", "*u8")),
]  # fmt: skip


def main() -> None:
    for kernel, signature, integers, constants in KERNELS:
        for one in (None, *integers):
            chosen = constants | ({one: 1} if one else {})
            types = signature | dict.fromkeys(integers, "i32") | dict.fromkeys(chosen, "constexpr")
            types = {name: types[name] for name in kernel.arg_names}
            values = {(kernel.arg_names.index(name),): value for name, value in chosen.items()}
            for architecture in ARCHITECTURES if one is None else ARCHITECTURES[1:2]:
                try:
                    compile(ASTSource(kernel, types, values, {}), target=GPUTarget("cuda", architecture, 32))
                except Exception as error:
                    print(f"{kernel.__name__}, {one} = 1, sm_{architecture}: {type(error).__name__}: {error}")
    print(f"compiled {len(KERNELS)} kernels")


if __name__ == "__main__":
    main()
