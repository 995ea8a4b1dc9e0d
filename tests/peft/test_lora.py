"""LoRA against its formula, against `peft`, and against the names and shapes of LitGPT's files."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import base_state, load_owned, merged_weights, owned_state, unwrap_modules
from litgpt.peft.lora_layers import LoRALinear, Update
from tests.paths import GOLDEN

EVERYWHERE = {"query": True, "key": True, "value": True, "projection": True, "mlp": True, "head": True}
LLAMA = {
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 2,
    "n_embd": 32,
    "head_size": 8,
    "intermediate_size": 48,
    "vocab_size": 64,
    "padded_vocab_size": 64,
    "block_size": 32,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "bias": False,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
}
NEOX = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 64, "padded_vocab_size": 64, "block_size": 32}
EXPERTS = {
    "mlp_class_name": "LLaMAMoE",
    "n_expert": 4,
    "n_expert_per_token": 2,
    "n_shared_expert": 1,
    "moe_intermediate_size": 24,
}
LATENT_SIZES = dict(q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
MODELS = {
    "llama, grouped queries": LLAMA,
    "neox, biases": NEOX,
    "multi-query": {**LLAMA, "n_query_groups": 1},
    "experts": {**LLAMA, **EXPERTS},
    "latent attention": {**LLAMA, "n_query_groups": 4, "latent_attention": LATENT_SIZES},
    "linear attention": {
        **LLAMA,
        "attention_gate": True,
        "linear_attention": dict(n_key_heads=2, n_value_heads=4, key_size=6, value_size=10, kernel_size=3),
        "linear_attention_indices": [1, 0],
    },
}
SWITCHES = [
    {"query": True, "value": True},
    {"query": False, "key": True, "value": False},
    {"query": False, "value": False, "projection": True},
    {"query": False, "value": False, "mlp": True, "head": True},
    EVERYWHERE,
]


def model_with(lora: LoRA, sizes: dict[str, Any], dtype: torch.dtype = torch.float64) -> GPT:
    """A model with `lora` attached and an update that does something."""
    torch.manual_seed(0)
    model = GPT(Config(**sizes)).to(dtype)
    lora.attach(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def golden_cases() -> list[Any]:
    return json.loads((GOLDEN / "lora_names.json").read_text())


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: f"{case['model']}-{'-'.join(case['lora'])}")
def test_names_and_shapes_are_those_of_litgpts_files(case: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = GPT(Config(**case["config"]))
    lora = LoRA(r=4, **case["lora"])
    lora.attach(model)
    assert {name: list(tensor.shape) for name, tensor in owned_state(model, lora.owns).items()} == case["parameters"]


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
def test_every_update_trains_and_merges_while_reading(sizes: dict[str, Any]) -> None:
    lora = LoRA(r=4, dropout=0.0, **EVERYWHERE)
    model = model_with(lora, sizes)
    tokens = torch.arange(40).view(2, 20)
    model(tokens).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == lora.owns(name), name
    streamed = dict(merged_weights(model, list(base_state(model, lora.owns))))
    unwrap_modules(model)
    assert streamed.keys() == model.state_dict().keys()
    assert all(torch.equal(streamed[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sizes", [LLAMA, {**LLAMA, **EXPERTS}], ids=["dense", "experts"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_update_comes_back_under_its_names(sizes: dict[str, Any], device: str) -> None:
    lora = LoRA(r=4, **EVERYWHERE)
    saved = owned_state(model_with(lora, sizes), lora.owns)
    with torch.device(device):
        fresh = GPT(Config(**sizes)).double()
        lora.attach(fresh)
    load_owned(fresh, lora.owns, saved, "a file")
    found = owned_state(fresh, lora.owns)
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches))
def test_merged_model_computes_the_same(sizes: dict[str, Any], switches: dict[str, bool]) -> None:
    model = model_with(LoRA(r=4, **switches), sizes)
    tokens = torch.arange(20).view(2, 10)
    updated = model(tokens)
    unwrap_modules(model)
    assert model.state_dict().keys() == GPT(Config(**sizes)).state_dict().keys()
    torch.testing.assert_close(model(tokens), updated, rtol=0, atol=1e-12)


def test_untrained_update_changes_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(Config(**LLAMA))
    tokens = torch.arange(10)[None]
    before = model(tokens)
    LoRA(**EVERYWHERE).attach(model)
    torch.testing.assert_close(model.eval()(tokens), before, rtol=0, atol=0)


def test_qkv_update_is_the_sum_of_one_product_for_each_enabled_part() -> None:
    model = model_with(LoRA(r=4, alpha=12, query=True, value=True), LLAMA)
    layer = model.transformer.h[0].attn.qkv
    x = torch.randn(7, 32, dtype=torch.float64)
    a_q, a_v = layer.lora_A.split(4)
    b_q, b_v = layer.lora_B.split([32, 16])
    none = torch.zeros(7, 16, dtype=torch.float64)
    update = torch.cat([x @ a_q.T @ b_q.T, none, x @ a_v.T @ b_v.T], dim=1)
    torch.testing.assert_close(layer(x), layer.linear(x) + 12 / 4 * update, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(6, 5).double(), Update(r=2, alpha=4))
    layer.linear.requires_grad_(False)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.lora_A, layer.lora_B)
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * target).sum(), inputs)
    formula = layer.linear(x) + 2 * (x @ layer.lora_A.T @ layer.lora_B.T)
    for gradient, expected in zip(ours, torch.autograd.grad((formula * target).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


KINDS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rsdora": {"rslora": True, "dora": True},
}


def peft_linears(names: list[str], linears: list[torch.nn.Linear], update: Update) -> torch.nn.Module:
    """PEFT's model of some linear layers, in float64."""
    peft = pytest.importorskip("peft")
    base = torch.nn.Module()
    for name, linear in zip(names, linears, strict=True):
        base.add_module(name, copy.deepcopy(linear))
    settings = peft.LoraConfig(
        r=update.r,
        lora_alpha=update.alpha,
        target_modules=names,
        use_rslora=update.rslora,
        use_dora=update.dora,
    )
    return peft.get_peft_model(base, settings).double().base_model.model


def give(layer: Any, a: torch.Tensor, b: torch.Tensor, magnitude: torch.Tensor | None) -> None:
    """Puts our numbers into a layer of PEFT's."""
    layer.lora_A["default"].weight.data.copy_(a)
    layer.lora_B["default"].weight.data.copy_(b)
    if magnitude is not None:
        layer.lora_magnitude_vector["default"].weight.data.copy_(magnitude)


def gradients(layer: Any) -> list[torch.Tensor]:
    """Of a layer of PEFT's: A's, B's and the magnitudes'."""
    owned = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    if len(layer.lora_magnitude_vector):
        owned.append(layer.lora_magnitude_vector["default"].weight)
    return [parameter.grad for parameter in owned]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("enabled", [(), (0, 1, 2), (0, 2)], ids=["one", "q-k-v", "q-v"])
def test_forward_gradient_and_merge_are_pefts(kind: dict[str, bool], bias: bool, enabled: tuple[int, ...]) -> None:
    """In float64; the fused query-key-value layer beside PEFT's three."""
    torch.manual_seed(0)
    update, rows = Update(r=4, alpha=8, **kind), [range(16), range(16, 24), range(24, 32)]
    linear = torch.nn.Linear(12, 32, bias=bias).double().requires_grad_(False)
    ours = LoRALinear(linear, update, [rows[i] for i in enabled] if enabled else None)
    blocks = [rows[i] for i in enabled] or [range(32)]
    for parameter in ours.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    x, target = torch.randn(3, 5, 12, dtype=torch.float64), torch.randn(3, 5, 32, dtype=torch.float64)
    (ours(x) * target).sum().backward()

    parts = [torch.nn.Linear(12, len(block), bias=bias).double() for block in blocks]
    for part, block in zip(parts, blocks, strict=True):
        part.weight.data.copy_(linear.weight[block.start : block.stop])
        if bias:
            part.bias.data.copy_(linear.bias[block.start : block.stop])
    theirs = peft_linears([f"part_{i}" for i in range(len(parts))], parts, update)
    sizes = [len(block) for block in blocks]
    magnitudes = ours.lora_magnitude.split(sizes) if update.dora else [None] * len(sizes)
    for i, (block, a, b, m) in enumerate(
        zip(blocks, ours.lora_A.split(4), ours.lora_B.split(sizes), magnitudes, strict=True)
    ):
        layer = getattr(theirs, f"part_{i}")
        give(layer, a, b, m)
        y = layer(x)
        torch.testing.assert_close(ours(x)[..., block.start : block.stop], y, rtol=0, atol=1e-10)
        (y * target[..., block.start : block.stop]).sum().backward()
        mine = [ours.lora_A.grad.split(4)[i], ours.lora_B.grad.split(sizes)[i]]
        mine += [ours.lora_magnitude.grad.split(sizes)[i]] if update.dora else []
        for found, expected in zip(mine, gradients(layer), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        layer.merge()
        merged = ours.merge_into(linear.weight)[block.start : block.stop]
        torch.testing.assert_close(merged, layer.get_base_layer().weight.data, rtol=0, atol=1e-10)
    untouched = [row for row in range(32) if not any(row in block for block in blocks)]
    assert torch.equal(ours.merge_into(linear.weight)[untouched], linear.weight[untouched])


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(
    "settings",
    [{"dora": True, "rslora": True}, {"init": "pissa"}, {"init": "pissa", "dora": True}, {"init": "pissa-fast"}],
    ids=["dora", "pissa", "pissa-dora", "pissa-fast"],
)
def test_every_kind_starts_as_the_model_was_trains_merges_and_comes_back(
    sizes: dict[str, Any], settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = GPT(Config(**sizes)).double().eval()
    tokens = torch.arange(20).view(2, 10)
    before, lora = model(tokens), LoRA(r=4, dropout=0.0, **EVERYWHERE, **settings)
    lora.attach(model)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-9)
    for name, parameter in model.named_parameters():
        if lora.owns(name):
            parameter.data += 0.1 * torch.randn_like(parameter)
    after = model(tokens)
    after.sum().backward()
    assert (after - before).abs().max() > 0.01
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == lora.owns(name), name
    saved = {name: tensor.clone() for name, tensor in owned_state(model, lora.owns).items()}
    torch.manual_seed(0)
    for method in (lora, lora.as_saved()):  # as a run goes on with it, and as every reader takes it
        fresh = GPT(Config(**sizes)).double().eval()
        fresh.load_state_dict(dict(base_state(model, lora.owns)))
        method.attach(fresh)
        load_owned(fresh, method.owns, saved, "a file")
        torch.testing.assert_close(fresh(tokens), after, rtol=0, atol=1e-9)
    unwrap_modules(model)
    torch.testing.assert_close(model(tokens), after, rtol=0, atol=1e-9)


def test_pissa_starts_with_the_largest_singular_values_as_pefts_does() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 16, bias=False).requires_grad_(False)
    ours = LoRALinear(linear, Update(r=4, alpha=8, init="pissa"))
    base = torch.nn.Sequential(copy.deepcopy(linear))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights="pissa")
    layer = peft.get_peft_model(base, config).base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(ours.lora_B @ ours.lora_A, b @ a, rtol=0, atol=1e-5)
    torch.testing.assert_close(linear.weight - 2 * ours.start_B @ ours.start_A, layer.get_base_layer().weight)


def wrapped(lora: LoRA, sizes: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """The layers of the first block that get an update: their parts, and the ranks."""
    found = lora.targets(GPT.skeleton(Config(**sizes)))
    short = {name.removeprefix("transformer.h.0."): t for name, t in found.items() if ".h.1." not in name}
    return {name: (target.parts, target.ranks) for name, target in short.items()}


@pytest.mark.parametrize(
    ("settings", "sizes", "expected"),
    [
        ({"target": "attn.query,fc_1"}, LLAMA, {"attn.qkv": (("query",), (8,)), "mlp.fc_1": ((), (8,))}),
        ({"target": ["attn.qkv"]}, LLAMA, {"attn.qkv": ((), (8,))}),
        ({"target": "attn.*"}, LLAMA, {"attn.qkv": (("query", "key", "value"), (8,)), "attn.proj": ((), (8,))}),
        ({"target": r"re:transformer\.h\.0\.mlp\.fc_\d"}, LLAMA, {"mlp.fc_1": ((), (8,)), "mlp.fc_2": ((), (8,))}),
        ({"target": "lm_head", "rank_pattern": {"lm_*": 3}}, LLAMA, {"lm_head": ((), (3,))}),
        ({"target": "experts.proj"}, {**LLAMA, **EXPERTS}, {"mlp.experts": (("proj",), (8,))}),
        (
            {"target": "mlp.experts", "rank_pattern": {"experts.proj": 2}},
            {**LLAMA, **EXPERTS},
            {"mlp.experts": (("fc_1", "fc_2", "proj"), (8, 8, 2))},
        ),
        (
            {"target": "attn.kv_*"},
            MODELS["latent attention"],
            {
                "attn.kv_a_proj_with_mqa": ((), (8,)),
                "attn.kv_b_proj": ((), (8,)),
            },
        ),
        ({"target": "attn.*", "modules_to_save": "attn.qkv"}, LLAMA, {"attn.proj": ((), (8,))}),
    ],
)
def test_patterns_choose_layers(settings: dict[str, Any], sizes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert wrapped(LoRA(**settings), sizes) == expected


@pytest.mark.parametrize("tied", [False, True])
def test_modules_to_save_train_whole_and_are_saved(tied: bool) -> None:
    torch.manual_seed(0)
    config = Config(**LLAMA, tie_embeddings=tied)
    model = GPT(config)
    lora = LoRA(r=2, modules_to_save="lm_head,norm_*")
    lora.attach(model)
    model(torch.arange(10)[None]).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    whole = {f"transformer.h.{i}.norm_{n}.weight" for i in (0, 1) for n in (1, 2)} | {"lm_head.weight"}
    assert whole < trained == owned_state(model, lora.owns).keys()
    assert not model.tied and bool(config.tie_embeddings) is tied


def test_lora_plus_is_for_b_alone() -> None:
    lora = LoRA(plus_ratio=16)
    assert [lora.rate_factor(f"x.{name}") for name in ("lora_A", "lora_B", "fc_1_lora_B", "lora_magnitude")] == [
        1,
        16,
        16,
        1,
    ]
    assert LoRA().rate_factor("x.lora_B") == 1


def test_only_the_update_trains() -> None:
    lora = LoRA(r=2, **EVERYWHERE)
    model = model_with(lora, LLAMA)
    model(torch.arange(10)[None]).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == lora.owns(name), name


def test_dropout_acts_in_training_only() -> None:
    model = model_with(LoRA(r=4, dropout=0.5), LLAMA)
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_mixed_precision_adds_a_float32_update_to_a_bfloat16_output() -> None:
    model = model_with(LoRA(r=4, dropout=0.0), LLAMA, torch.float32)
    tokens = torch.arange(10)[None]
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(tokens)
        mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), exact, rtol=0, atol=0.05)
    assert model.transformer.h[0].attn.qkv.lora_A.grad.dtype == torch.float32


def test_attaches_on_meta_and_starts_when_materialised() -> None:
    with torch.device("meta"):
        model = GPT(Config(**LLAMA))
    LoRA().attach(model)
    layer = model.transformer.h[0].attn.qkv
    assert isinstance(layer, LoRALinear) and layer.lora_A.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.lora_A.abs().sum() > 0 and layer.lora_B.abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"r": 0}, "lora_r is 0"),
        ({"dropout": 1.0}, "lora_dropout is 1.0"),
        ({"query": False, "value": False}, "All of lora_query"),
        ({"alpha": 0}, "lora_alpha is 0"),
        ({"rank_pattern": {"fc_1": 0}}, "lora_rank_pattern fc_1 is 0"),
        ({"init": "zero"}, "lora_init is 'zero'"),
        ({"plus_ratio": -1.0}, "lora_plus_ratio is -1"),
        ({"target": "mlp.*", "head": True}, "leave lora_head out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        LoRA(**settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"r": 999999}, r"lora_r is 999999, but transformer.h.0.attn.qkv is a matrix of 64 x 32"),
        ({"r": 33, "target": "lm_head"}, "no update of it has a higher rank than 32"),
        ({"target": "attn.*,nope"}, "no linear layer of this model matches 'nope'"),
        ({"target": "re:("}, "is no regular expression"),
        ({"modules_to_save": "norm_7"}, "no module of this model matches 'norm_7'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        LoRA(**settings).check(GPT.skeleton(Config(**LLAMA)))
    assert "\n" not in str(caught.value)


def test_files_of_plain_lora_are_described_in_litgpts_words_alone() -> None:
    known = {"r", "alpha", "dropout", "query", "key", "value", "projection", "mlp", "head"}
    assert LoRA(r=4).settings().keys() == known
    assert LoRA(dora=True, init="pissa").settings().keys() == known | {"dora", "init"}
