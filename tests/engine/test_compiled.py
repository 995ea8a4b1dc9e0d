"""The compiled decode step says what the plain one does; where nothing compiles, one sentence tells."""

from __future__ import annotations

import shutil
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litgpt.engine import compiled
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.runtime import check_compiler
from tests.engine.oracle import MODELS, naive, prompts, tiny_model

GREEDY = Sampling(temperature=0)


def converse(model, **settings) -> None:
    """Runs more requests than slots, some of which share beginnings, against the oracle."""
    engine = Engine(model, slots=3, chunk=8, compile=True, **settings)
    requests = [engine.submit(p, GREEDY, max_new_tokens=14) for p in prompts(5, 30, 9, 64, 44)]
    answers = [request.result() for request in requests]
    assert answers == [naive(model, request.prompt, request.limit) for request in requests]
    again = [requests[0].prompt + requests[0].output[:9] + [3], [*requests[1].prompt, 4]]
    requests = [engine.submit(p, GREEDY, max_new_tokens=14) for p in again]
    answers = [request.result() for request in requests]
    assert answers == [naive(model, request.prompt, request.limit) for request in requests]


@pytest.mark.parametrize("case", [case for case in MODELS if case != "hybrid"])
def test_fixed_shapes_change_no_text(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)  # which takes minutes
    converse(tiny_model(case))


def test_one_position_of_a_slot_may_be_overwritten(monkeypatch):
    """A slot that is full to its end is not whole any more once a row without a request wrote there."""
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    model = tiny_model()
    engine = Engine(model, slots=2, length=32, compile=True)
    full, other = prompts(32, 3)
    first = engine.submit(full, GREEDY, max_new_tokens=1)
    assert first.result() == naive(model, full, 1)
    longer = engine.submit(other, GREEDY, max_new_tokens=9)
    again = engine.submit(full, GREEDY, max_new_tokens=1)
    assert longer.result() == naive(model, other, 9)
    assert again.result() == naive(model, full, 1)


@pytest.mark.slow
def test_what_inductor_makes_of_it_changes_no_text():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules, while it imports them
        converse(tiny_model("llama-window"))


def test_without_a_compiler_one_sentence_tells(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LitGPTError, match=r"needs a C\+\+ compiler"):
        Engine(tiny_model(), compile=True)
    with pytest.raises(LitGPTError, match="runs on mps"):
        check_compiler(torch.device("mps"))


def test_linear_attention_is_refused():
    with pytest.raises(LitGPTError, match="not for models with linear attention"):
        Engine(tiny_model("hybrid"), compile=True)


class FakeGraph:
    """Stands for a captured graph: remembers the memory that it reads and did not make, and whether that lives on."""

    def __init__(self, run, rows, device, pool) -> None:
        self.run, self.pool = run, pool
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] | None = None

    def __call__(self, idx, places):
        with ReadFromOutside(idx, places) as reads:
            hidden = self.run(idx, places)
        if self.known is None:
            self.known = {tensor.data_ptr(): weakref.ref(tensor) for tensor in reads.storages.values()}
        assert all(known() is not None for known in self.known.values()), "a tensor that the graph reads was freed"
        assert set(reads.storages) <= set(self.known), "a replay would read another tensor than was captured"
        return hidden


class ReadFromOutside(TorchDispatchMode):
    """Notes the memory that operations read without having made it."""

    def __init__(self, *inputs) -> None:
        super().__init__()
        self.made = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.kept: list[torch.Tensor] = []  # else an address could be used again

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made and storage.nbytes() > 8:  # numbers are not captured by address
                self.storages[storage.data_ptr()] = storage
        out = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            if tensor.untyped_storage().data_ptr() not in self.storages:
                self.made.add(tensor.untyped_storage().data_ptr())
                self.kept.append(tensor)
        return out


@pytest.mark.parametrize("case", ["llama-window", "latent-experts"])
def test_no_tensor_that_a_graph_reads_is_replaced(case, monkeypatch):
    """Prompts get longer from graph to graph, and the model runs beside the engine, longer still."""
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "one")
    monkeypatch.setattr(compiled, "CudaGraph", FakeGraph)
    model = tiny_model(case, block_size=600)
    engine = Engine(model, slots=2, chunk=64, length=512, compile=True)
    engine._compiled._captures = True
    for length in (5, 100, 280, 20):
        (prompt,) = prompts(length)
        assert engine.submit(prompt, GREEDY, max_new_tokens=4).result() == naive(model, prompt, 4)
        with torch.no_grad():
            model(torch.zeros(1, length + 300, dtype=torch.long))
    assert {graph.pool for graph in engine._compiled._graphs.values()} == {"one"}
