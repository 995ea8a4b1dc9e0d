"""Several adapters in one batch: each row as if its adapter were the only one."""

from __future__ import annotations

import copy

import pytest
import torch

from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import owned_state, unwrap_modules
from litgpt.peft.adapter_bank import AdapterBank
from tests.deploy.lora_runs import attach_random
from tests.peft.test_lora import EXPERTS, LLAMA, NEOX

METHODS = {
    "attention": LoRA(r=4, alpha=8),
    "everything": LoRA(r=2, alpha=8, key=True, projection=True, mlp=True, head=True),
    "magnitudes": LoRA(r=4, alpha=8, key=True, projection=True, dora=True),
}


def adapted(base: GPT, method: LoRA, seed: int) -> GPT:
    """The model with an adapter of random values attached."""
    model = copy.deepcopy(base)
    attach_random(model, method, seed)
    return model.eval()


def banked(sizes: dict) -> tuple[AdapterBank, dict[str | None, GPT]]:
    """A bank of the three adapters beside a model, and by name a model with one of them merged."""
    torch.manual_seed(0)
    base = GPT(Config(name="x", **sizes)).eval()
    alone: dict[str | None, GPT] = {None: copy.deepcopy(base)}
    bank = AdapterBank(base)
    for seed, (name, method) in enumerate(METHODS.items()):
        model = adapted(alone[None], method, seed)
        bank.add(name, method, owned_state(model, method.owns), name)
        unwrap_modules(model)
        alone[name] = model
    return bank, alone


@pytest.mark.parametrize("sizes", [LLAMA, NEOX], ids=["llama", "neox with biases"])
def test_each_row_is_computed_with_its_own_adapter(sizes):
    bank, alone = banked(sizes)
    model = bank.model
    rows = ["attention", None, "everything", "magnitudes", "attention"]
    idx = torch.randint(64, (len(rows), 7))
    with torch.no_grad():
        with bank.using(rows):
            found = model(idx)
        for row, name in enumerate(rows):
            torch.testing.assert_close(found[row], alone[name](idx[row : row + 1])[0], atol=2e-4, rtol=1e-4)
            with bank.using([name]):
                torch.testing.assert_close(model(idx[row : row + 1])[0], found[row], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(model(idx), alone[None](idx))


def test_an_engine_gives_each_request_what_its_adapter_alone_would_and_shares_no_prefix():
    bank, alone = banked(LLAMA)
    engine = Engine(bank.model, slots=4)
    engine.bank = bank
    prompt = [5, 9, 33, 12, 7, 41]
    names = [None, "attention", "everything", "magnitudes", "attention", None, "everything"]
    greedy = Sampling(temperature=0)
    requests = [engine.submit(prompt, greedy, max_new_tokens=12, adapter=name) for name in names]
    found = [request.result() for request in requests]
    for name, tokens in zip(names, found, strict=True):
        assert tokens == Engine(alone[name]).submit(prompt, greedy, max_new_tokens=12).result(), name
    assert len({tuple(tokens) for tokens in found}) == 4
    assert all(request.n_shared == 0 for request in requests[:4]), "a prefix went over to another adapter"
    assert requests[4].n_shared == len(prompt) - 1


def test_an_unknown_adapter_is_told():
    bank, _ = banked(LLAMA)
    engine = Engine(bank.model)
    engine.bank = bank
    with pytest.raises(LitGPTError, match="There is no adapter 'x'"):
        engine.submit([1], adapter="x")


def test_experts_and_whole_modules_are_refused():
    base = GPT(Config(name="x", **{**LLAMA, **EXPERTS}))
    method = LoRA(r=2, mlp=True)
    model = adapted(base, method, 0)
    with pytest.raises(LitGPTError, match="updates of experts"):
        AdapterBank(base).add("x", method, owned_state(model, method.owns), "the file")
    whole = LoRA(r=2, modules_to_save=["lm_head"])
    with pytest.raises(LitGPTError, match="whole modules"):
        AdapterBank(base).add("x", whole, {}, "the file")


def test_an_adapter_of_another_model_is_told():
    other = adapted(GPT(Config(name="x", **{**LLAMA, "n_embd": 64})), METHODS["attention"], 0)
    bank = AdapterBank(GPT(Config(name="x", **LLAMA)))
    with pytest.raises(LitGPTError, match="the file holds .* of shape"):
        bank.add("x", METHODS["attention"], owned_state(other, METHODS["attention"].owns), "the file")


def test_a_deterministic_engine_gives_each_adapter_the_same_bits_among_others():
    bank, _ = banked(LLAMA)

    def answers(names: list[str | None]) -> list[tuple[list[int], list[float]]]:
        engine = Engine(bank.model, slots=4, deterministic=True)
        engine.bank = bank
        sampling = Sampling(seed=3, logprobs=0)
        requests = [engine.submit([5, 9, 33, 12], sampling, max_new_tokens=8, adapter=name) for name in names]
        return [(request.result(), [noted.logprob for noted in request.logprobs]) for request in requests]

    names = [None, "attention", "everything", "attention", "magnitudes", None]
    assert answers(names) == [answers([name])[0] for name in names]
