"""How often a decode step asks its device for a value, each time waiting for all that is under way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from tests.engine.oracle import prompts, tiny_model

WAITING_METHODS = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
WAITING_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal")


class Operations(TorchDispatchMode):
    """Counts operations whose result, or its size, the host has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.n += by_mask or name in WAITING_OPERATIONS
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Counts what hands all values of a tensor to the host, which is no operation."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.n += function in WAITING_METHODS
        return function(*args, **(kwargs or {}))


def waits(*samplings: Sampling) -> int:
    """In one decode step of requests like these."""
    engine = Engine(tiny_model(), slots=len(samplings), chunk=64)
    for prompt, sampling in zip(prompts(*range(5, 5 + len(samplings))), samplings, strict=True):
        engine.submit(prompt, sampling, max_new_tokens=9)
    engine.step()
    engine.step()
    with Operations() as operations, Methods() as methods:
        engine.step()
    return operations.n + methods.n


@pytest.mark.parametrize("requests", [1, 4])
def test_a_step_waits_once(requests):
    assert waits(*[Sampling(temperature=0)] * requests) == 1
    assert waits(*[Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)] * requests) == 1
    assert waits(*[Sampling(temperature=0.7, top_p=0.9)] * requests, Sampling(temperature=0)) == 1
    assert waits(*[Sampling(temperature=0.7)] * requests) == 1


def test_every_wait_is_seen():
    with Operations() as operations, Methods() as methods:
        x = torch.arange(3)
        int(x[0]), bool(x[0]), x[0].item(), x.tolist(), x.nonzero(), x[x > 1]
    assert (operations.n, methods.n) == (5, 1)
