"""Kernels in Triton for CUDA, each beside what torch computes without it; `chosen` says where they are used.

Each is an operator of torch's own registry (`litgpt::…`), so that compilers, autograd, sharding and tensors without
values know it. `LITGPT_TRITON=0` in the environment turns all off.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

SWITCH = "LITGPT_TRITON"
"""The variable of the environment that turns the kernels off: 0."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def available() -> bool:
    """Whether Triton is there and not turned off."""
    return os.environ.get(SWITCH, "1") != "0" and find_spec("triton") is not None and torch.version.hip is None


def chosen(*tensors: Tensor) -> bool:
    """Whether a kernel computes on such tensors, in the place of several of torch's."""
    return all(tensor.is_cuda and tensor.dtype in DTYPES for tensor in tensors) and available()
