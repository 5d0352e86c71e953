"""Which kind of derivative an operator may be asked for.

torch.library's own autograd registration knows neither forward mode nor `torch.func`: a tangent would be dropped
without a word. So under those an operator is called through an `autograd.Function` with a `jvp`, which Dynamo does not
trace.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether forward mode or `torch.func` is at work, whose derivatives `requires_grad` does not tell of.

    `torch.compile` breaks its graph here under a transform, and leaves it to eager mode.
    """
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0
