"""Every family's model learns by every method: attached, quantized or not, stepped on packed documents, merged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.args import TrainArgs
from litgpt.config import Config
from litgpt.engine.tensor_parallel import check_divides
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.model.attention import CausalSelfAttention, MultiheadLatentAttention
from litgpt.model.initialization import initialize
from litgpt.peft import Full, Method, load_owned, owned_state, unwrap_modules
from litgpt.quantize import quantize_model
from litgpt.training.loss import NextToken
from litgpt.training.planner.memory_estimate import RunSpec, estimate_memory
from tests.tiny import BY_LENGTH, CASES, NEWER, WIDE

LENGTHS = (13, 24, 3)
EVERYTHING = dict(r=2, query=True, key=True, value=True, projection=True, mlp=True, head=True, dropout=0.0)
METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "lora": partial(LoRA, **EVERYTHING),
    "dora": partial(LoRA, **EVERYTHING, dora=True),
    "qlora": partial(LoRA, **EVERYTHING),
    "adapter": partial(Adapter, start_layer=0),
    "adapter_v2": AdapterV2,
}
FAST = {case for case in NEWER if case not in WIDE}
EACH = [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES if case not in BY_LENGTH]


def config_of(case: str) -> Config:
    import transformers

    name, settings = CASES[case]
    config = getattr(transformers, name)(**settings)
    architecture = next(
        found
        for suffix in ("ForCausalLM", "LMHeadModel")
        if hasattr(transformers, found := name.removesuffix("Config").removesuffix("Text") + suffix)
        or hasattr(transformers, found := name.removesuffix("Config") + suffix)
    )
    return Config.from_hf({**config.to_dict(), "architectures": [architecture]})


def model_of(config: Config) -> GPT:
    torch.manual_seed(0)
    model = GPT(config)
    initialize(model)
    for name, parameter in model.named_parameters():
        constant = parameter.dim() > 1 and bool((parameter == parameter.flatten()[0]).all())
        assert not constant or "norm" in name or name.endswith("_bias"), name
    return model


def learned(config: Config, name: str) -> bool:
    """Whether a loss says how a parameter is to change: what an indexer chooses is no sum that has a gradient, and a
    scale of streams may be one that nothing is multiplied with."""
    scales = name.endswith(".streams.scale")
    return ".indexer." not in name and not (scales and config.streams and not config.streams["scaled"])


def step(model: GPT, method: Method) -> dict[str, torch.Tensor]:
    """One step on packed documents; returns the gradients of what the method trains."""
    owned = {name: parameter for name, parameter in model.named_parameters() if method.owns(name)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in owned)
    ids = torch.randint(0, 96, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
    NextToken(model).train()(ids, ids, LENGTHS).backward()
    gradients = {name: parameter.grad for name, parameter in owned.items() if learned(model.config, name)}
    assert all(gradient is not None for gradient in gradients.values()), [k for k, v in gradients.items() if v is None]
    torch.optim.AdamW(owned.values(), lr=0.01).step()
    return gradients


@pytest.mark.parametrize("case", EACH)
def test_every_method_trains_it(case):
    config = config_of(case)
    for name, make in METHODS.items():
        model, method = model_of(config), make()
        if name == "qlora":
            quantize_model(model, "int8", torch.float32)
        try:
            method.attach(model)
        except LitGPTError as error:
            assert name in ("adapter", "adapter_v2") and "use finetune_lora" in str(error), (name, error)
            continue
        gradients = step(model, method)
        assert gradients and all(gradient.isfinite().all() for gradient in gradients.values()), name
        assert any(gradient.any() for gradient in gradients.values()), name
        saved = {key: tensor.detach().clone() for key, tensor in owned_state(model, method.owns).items()}
        if name == "full":
            continue
        again = model_of(config)
        make().attach(again)
        load_owned(again, method.owns, saved, "a file")
        if name in ("lora", "dora"):
            ids = torch.arange(20)[None]
            with torch.no_grad():
                beside = again.eval()(ids)
                unwrap_modules(again)
                torch.testing.assert_close(again(ids), beside, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma3n", "falcon-h1", "nemotron-3-super-like", "kimi-linear", "deepseek-v3.2"])
def test_its_training_is_planned(case):
    config, method, sizes = config_of(case), LoRA(r=2), dict(micro_batch_size=1, global_batch_size=1)
    spec = RunSpec(config, method, TrainArgs(**sizes), "AdamW", "32-true", torch.device("cpu"), length=16)
    estimate = estimate_memory(spec)
    model = GPT.skeleton(config)
    method.attach(model)
    held = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert held <= estimate.memory.weights <= 1.1 * held + 4096


@pytest.mark.parametrize("case", EACH)
def test_two_devices_share_it_or_it_says_why_not(case):
    model = GPT.skeleton(config_of(case))
    try:
        check_divides(model, 2)
    except LitGPTError as error:
        assert "one" in str(error) or "number that divides" in str(error)
    else:
        kinds = CausalSelfAttention | MultiheadLatentAttention
        assert all(isinstance(block.attn, kinds) and block.state is None for block in model.transformer.h)
