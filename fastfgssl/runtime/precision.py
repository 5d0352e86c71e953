"""What arithmetic a training step uses: the policy behind `train.precision`.

float32     float32 everywhere; TF32 nowhere, on a GPU neither in products nor in convolutions
tf32        float32, whose products and convolutions round their operands to TF32 on a GPU (10 bits of 23)
bfloat16    autocast; what stays in float32 may use TF32 in convolutions, as torch's default is
float16     the same, with a scaled loss
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Contexts for the parts of a step on `device`."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        self.scales_loss = name == "float16"

    def autocast(self) -> AbstractContextManager[object]:
        """For a forward pass. Entered anew for each: what it keeps of one without gradients would serve the next."""
        dtype = _AUTOCAST.get(self._name)
        return torch.autocast(self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """For forward and backward pass: whether products and convolutions of float32 use TF32."""
        if self._device.type != "cuda" or self._name in _AUTOCAST:
            yield
            return
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = self._name == "tf32"
        try:
            yield
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before
