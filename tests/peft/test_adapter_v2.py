"""LLaMA-Adapter V2 against its formula and against the names and shapes of LitGPT's files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.checkpoint.reader import load_pth
from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.peft import Method, base_state, load_owned, owned_state
from litgpt.peft.adapter_v2 import AdaptedLinear
from tests.engine.oracle import naive
from tests.peft.test_adapter import TOKENS, golden_cases
from tests.peft.test_lora import EXPERTS, LATENT_SIZES, LLAMA, NEOX

MODELS: dict[str, dict[str, Any]] = {
    "llama, grouped queries": {**LLAMA, "n_layer": 3},
    "neox, biases": {**NEOX, "n_layer": 3},
    "experts": {**LLAMA, **EXPERTS, "n_layer": 3},
    "tied": {**LLAMA, "n_layer": 3, "tie_embeddings": True},
    "two layers, no prompts": LLAMA,
}


def adapted(sizes: dict[str, Any], dtype: torch.dtype = torch.float64) -> GPT:
    """A model with adapters attached that do something."""
    torch.manual_seed(0)
    model = GPT(Config(**sizes)).to(dtype)
    method = AdapterV2()
    method.attach(model)
    for name, parameter in model.named_parameters():
        if method.owns(name) and not name.endswith("adapter_wte.weight"):
            torch.nn.init.normal_(parameter, mean=float("scale" in name), std=0.3)
    return model.eval()


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["model"])
def test_names_and_shapes_are_those_of_litgpts_files(case: dict[str, Any]) -> None:
    model = GPT.skeleton(Config.from_name(case["model"], **case["config"]))
    method = AdapterV2()
    method.attach(model)
    owned = owned_state(model, method.owns)
    shapes = {name: list(tensor.shape) for name, tensor in owned.items() if not name.startswith("transformer.h.1.")}
    assert shapes == case["adapter_v2"]
    assert all(tensor.is_meta for tensor in owned.values())


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_an_untrained_adapter_changes_nothing(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(Config(**sizes))
    before = model(TOKENS)
    AdapterV2().attach(model)
    torch.testing.assert_close(model(TOKENS), before, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_everything_owned_trains_and_nothing_else_does(sizes: dict[str, Any]) -> None:
    model, method = adapted(sizes), AdapterV2()
    tokens = torch.arange(60).view(3, 20)
    model(tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == method.owns(name), name


def test_frozen_parameters_keep_the_names_a_checkpoint_has() -> None:
    sizes = {**LLAMA, **EXPERTS, "n_layer": 3}
    model, method = GPT.skeleton(Config(**sizes)), AdapterV2()
    plain = set(model.state_dict())
    method.attach(model)
    norms = {name for name in plain if "norm_" in name or "ln_f" in name}
    assert {name for name, _ in base_state(model, method.owns)} == plain - norms


def test_output_and_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    layer = AdaptedLinear(torch.nn.Linear(6, 5).double())
    for parameter in (layer.adapter_bias, layer.adapter_scale):
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    learned = (x, layer.adapter_bias, layer.adapter_scale)
    formula = torch.stack(
        [
            layer.adapter_scale[row] * (x @ layer.weight[row] + layer.bias[row] + layer.adapter_bias[row])
            for row in range(5)
        ],
        dim=-1,
    )
    torch.testing.assert_close(layer(x), formula, rtol=0, atol=1e-12)
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * target).sum(), learned)
    for gradient, expected in zip(ours, torch.autograd.grad((formula * target).sum(), learned), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_each_expert_has_its_own() -> None:
    model = adapted({**LLAMA, **EXPERTS, "n_layer": 3})
    moe = model.transformer.h[1].mlp
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    weights, chosen = moe.route(x[0])
    state = moe.experts.state_dict()

    def part(expert: int, name: str, row: torch.Tensor) -> torch.Tensor:
        plain = state[f"linear.{expert}.{name}.weight"] @ row + state[f"{expert}.{name}.adapter_bias"]
        return plain * state[f"{expert}.{name}.adapter_scale"]

    expected = moe.shared_experts(x)[0]
    for t, row in enumerate(x[0]):
        for weight, expert in zip(weights[t], chosen[t].tolist(), strict=True):
            gate, carrier = part(expert, "fc_1", row), part(expert, "fc_2", row)
            expected[t] += weight * part(expert, "proj", torch.nn.functional.silu(gate) * carrier)
    torch.testing.assert_close(moe(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_text_from_a_cache_is_that_of_the_naive_way(sizes: dict[str, Any]) -> None:
    model = adapted(sizes)
    request = Engine(model, chunk=4).submit([5, 6, 7, 8, 9, 10], Sampling(temperature=0), max_new_tokens=8)
    assert request.result() == naive(model, [5, 6, 7, 8, 9, 10], 8)


@pytest.mark.parametrize("sizes", [MODELS["experts"], MODELS["tied"]], ids=["experts", "tied"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_adapter_comes_back_under_its_names(sizes: dict[str, Any], device: str) -> None:
    method = AdapterV2()
    saved = owned_state(adapted(sizes), method.owns)
    with torch.device(device):
        fresh = GPT(Config(**sizes)).double()
        method.attach(fresh)
    load_owned(fresh, method.owns, saved, "a file")
    found = owned_state(fresh, method.owns)
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


def test_mixed_precision_is_close_to_exact() -> None:
    model = adapted(MODELS["llama, grouped queries"], torch.float32)
    exact = model(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(TOKENS)
    torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.05)


def test_latent_attention_is_refused() -> None:
    sizes = {**LLAMA, "n_layer": 3, "n_query_groups": 4, "latent_attention": LATENT_SIZES}
    with pytest.raises(LitGPTError, match="latent attention"):
        AdapterV2().attach(GPT.skeleton(Config(**sizes)))


PEER = """
import importlib, sys, torch, yaml
from pathlib import Path
version, sizes, folder = sys.argv[1], yaml.safe_load(sys.argv[2]), Path(sys.argv[3])
theirs = importlib.import_module(f"litgpt.{version}")
torch.manual_seed(1)
model = theirs.GPT(theirs.Config(**sizes)).eval()
learned = {name: tensor for name, tensor in model.state_dict().items() if theirs.adapter_filter(name, tensor)}
for name, tensor in learned.items():
    torch.nn.init.normal_(tensor, mean=float("scale" in name or "norm" in name), std=0.3)
base = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items() if "adapter_" not in name}
torch.save({name: tensor for name, tensor in base.items() if "gating_factor" not in name}, folder / "base.pth")
torch.save({"model": learned}, folder / "learned.pth")
with torch.no_grad():
    torch.save(model(torch.arange(8)[None]), folder / "logits.pth")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", [Adapter(), AdapterV2()], ids=["adapter", "adapter_v2"])
def test_what_litgpt_trained_computes_the_same_here(method: Method, peer_python: str, tmp_path: Path) -> None:
    """With one group of keys and values: with several, LitGPT takes other rows of its weights for the prompt's."""
    sizes = {**LLAMA, "n_layer": 3, "n_query_groups": 1}
    command = [peer_python, "-I", "-c", PEER, method.suffix[1:], yaml.dump(sizes), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    model = GPT(Config(**sizes))
    model.load_state_dict(load_pth(tmp_path / "base.pth"))
    method.attach(model)
    load_owned(model, method.owns, load_pth(tmp_path / "learned.pth"), "LitGPT's file")
    theirs = torch.load(tmp_path / "logits.pth", weights_only=True)
    torch.testing.assert_close(model.eval()(torch.arange(8)[None]), theirs, rtol=1e-4, atol=1e-4)
