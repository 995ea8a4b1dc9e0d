"""Linear layers in 8 and 4 bits compute what their dequantized weights say, everywhere that a model is used."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from litgpt import LLM, runtime
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.finetune import adapter_v2, lora
from litgpt.generate.base import main as generate
from litgpt.kernels.linear import use_fast_linear
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.quantize import MODES, check_quantization, dense_weight, is_quantized, kernels, make_layer, quantize_model
from litgpt.quantize.linear import Int8Linear, QuantizedLinear, quantize_groups
from litgpt.runtime import quantized_precision
from litgpt.training.loss import NextToken
from tests.engine.oracle import LLAMA, MODELS, naive, tiny_model
from tests.finetune.conftest import data_file, lit_folder  # noqa: F401  (fixtures)
from tests.finetune.test_finetune import run
from tests.generate.folder import make_folder

pytestmark = pytest.mark.usefixtures("no_picture")

LOSES = {"bnb.nf4": 0.11, "bnb.fp4": 0.14, "bnb.int8": 0.01, "int8": 0.01, "int4": 0.09}
"""Mode → the most that normal weights change by, of their norm."""
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""What is computed in → how far a product may be from that of the dequantized weights in float32."""
SHAPES = [(128, 64), (48, 96), (50, 64), (33, 20), (7, 48), (192, 128)]
"""Rows and columns; not all of them are what a kernel wants."""
MIXTURE = {**LLAMA, "mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}
LATENT = dict(q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
CASES: dict[str, dict[str, Any]] = {
    **MODELS,
    "tied": {**LLAMA, "tie_embeddings": True},
    "mixture": MIXTURE,
    "mixture-biased": {**MIXTURE, "expert_bias": True},
    "latent": {**LLAMA, "latent_attention": LATENT},
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each mode; those of bitsandbytes where it is installed."""
    if request.param.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    return request.param


def filled(mode: str, weight: Tensor, dtype: torch.dtype, name: str = "attn.qkv") -> QuantizedLinear:
    layer = make_layer(mode, name, weight.size(1), weight.size(0), False, dtype)
    layer.load_weight(weight)
    return layer


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def folder_of(case: str, folder: Path) -> Path:
    folder.mkdir()
    model = tiny_model("llama", **{**LLAMA, "n_embd": 64, "intermediate_size": 64, **CASES[case]})
    model.config.save(folder)
    save_state(folder / "lit_model.pth", model.state_dict())
    return folder


def with_dequantized(plain: GPT, quantized: GPT) -> GPT:
    """`plain`, untied, with what the layers of `quantized` have."""
    plain.lm_head.weight = nn.Parameter(plain.lm_head.weight.detach().clone())
    state = plain.state_dict()
    for name, module in quantized.named_modules():
        if isinstance(module, QuantizedLinear):
            own = re.sub(r"experts\.(\w+)\.(\d+)$", r"experts.\2.\1", name)  # part and number, the other way round
            state[f"{own}.weight"] = module.dequantized()
    plain.load_state_dict(state)
    return plain


# ------------------------------------------------------------------------------------------------------ one layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_the_dequantized_weight(mode: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = filled(mode, torch.randn(shape) * 0.05, dtype)
    weight = layer.dequantized(torch.float32)
    for rows in (1, kernels.FEW_INT8 + 1, kernels.FEW_INT4 + 1):
        x = torch.randn(rows, shape[1]).to(dtype)
        y = layer(x)
        assert y.dtype == dtype and distance(y, x.float() @ weight.T) < DTYPES[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_hardly_changed_and_the_one_given_not_at_all(mode: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    before = weight.clone()
    layer = filled(mode, weight, torch.float32)
    allowed = LOSES["int8"] if isinstance(layer, Int8Linear) else LOSES[mode.removesuffix("-dq")]
    assert torch.equal(weight, before)
    assert 0 < distance(layer.dequantized(), weight) < allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_dequantized_weight(mode: str, dtype: torch.dtype) -> None:
    layer = filled(mode, torch.randn(48, 64), dtype)
    x = torch.randn(2, 5, 64).to(dtype).requires_grad_()
    towards = torch.randn(2, 5, 48).to(dtype)
    (ours,) = torch.autograd.grad((layer(x) * towards).sum(), x)
    (theirs,) = torch.autograd.grad((F.linear(x, layer.dequantized()) * towards).sum(), x)
    assert torch.equal(ours, theirs)


def test_a_transposed_weight_is_taken(mode: str) -> None:
    weight = torch.randn(64, 48)
    assert torch.equal(
        filled(mode, weight.T, torch.float32).dequantized(), filled(mode, weight.T.clone(), torch.float32).dequantized()
    )


def test_a_weight_taken_in_parts_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(192, 64)
    whole = filled(mode, weight, torch.float32).dequantized()
    monkeypatch.setattr("litgpt.quantize.linear.QUANTIZE_CHUNK", 64 * 64)
    monkeypatch.setattr(kernels, "CHUNK", 64 * 64)
    layer = filled(mode, weight, torch.float32)
    x = torch.randn(kernels.FEW_INT4 + 1, 64)
    assert torch.equal(layer.dequantized(), whole)
    torch.testing.assert_close(layer(x), x @ whole.T)


def test_rounding_is_better_than_to_the_range_of_a_group() -> None:
    torch.manual_seed(0)
    groups = torch.randn(64, 4, 32) ** 3

    def error(rounds: int) -> float:
        codes, factors = quantize_groups(groups, torch.float32, rounds)
        assert codes.min() >= 0 and codes.max() <= 15
        scale, zero = factors[..., :1], factors[..., 1:]
        return distance((codes - 8) * scale + zero, groups)

    assert error(2) < 0.95 * error(0) < 0.3


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_equal_weights_lose_nothing(value: float) -> None:
    weight = torch.full((16, 64), value)
    assert torch.equal(filled("int4", weight, torch.bfloat16).dequantized(torch.float32), weight)
    assert distance(filled("int8", weight + 1e-9, torch.float32).dequantized(), weight + 1e-9) < 1e-6


def test_codes_and_scales_say_what_a_packed_weight_is() -> None:
    weight = torch.randn(128, 64)
    codes, factors = quantize_groups(weight.view(128, 2, 32), torch.float32)
    said = ((codes - 8) * factors[..., :1] + factors[..., 1:]).view(128, 64)
    torch.testing.assert_close(filled("int4", weight, torch.float32).dequantized(), said)


def test_a_layout_that_is_not_known_is_read_through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = filled("int4", torch.randn(128, 64), torch.float32), torch.randn(200, 64)
    known = layer.dequantized(), layer(x)
    assert kernels.block_rows() in (32, 64), "this machine's layout is not known, and long prompts are slow"
    monkeypatch.setattr(kernels, "block_rows", lambda: 2**62)
    torch.testing.assert_close((layer.dequantized(), layer(x)), known)


def test_rows_that_lie_apart_are_taken(mode: str) -> None:
    layer = filled(mode, torch.randn(48, 64), torch.float32)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(layer(x[:, -1]), layer(x[:, -1].clone()))
    torch.testing.assert_close(layer(x[..., :].mT.mT), layer(x))


def test_a_bias_and_leading_dimensions_stay(mode: str) -> None:
    layer = make_layer(mode, "mlp.fc", 64, 48, True, torch.float32)
    layer.load_weight(torch.randn(48, 64))
    layer.bias = nn.Parameter(torch.randn(48))
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized(), layer.bias))


# ----------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("chosen", ["int8", "int4", "bnb.nf4"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_is_read_as_that_of_its_dequantized_weights(case: str, chosen: str, tmp_path: Path) -> None:
    if chosen.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    folder = folder_of(case, tmp_path / "model")
    quantized = load_model(folder, dtype=torch.float32, quantize=chosen)
    assert is_quantized(quantized) and not any(tensor.is_meta for tensor in quantized.parameters())
    plain = with_dequantized(load_model(folder, dtype=torch.float32), quantized)
    tokens = torch.randint(0, 96, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(quantized(tokens), plain(tokens), rtol=1e-3, atol=1e-3)


def test_embeddings_norms_and_routers_stay(mode: str, tmp_path: Path) -> None:
    model = load_model(folder_of("mixture", tmp_path / "model"), dtype=torch.float32, quantize=mode)
    kept = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    kept -= {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert kept == {"transformer.wte", "transformer.h.0.mlp.gate", "transformer.h.1.mlp.gate"}


def test_a_head_that_is_the_embedding_stays_it_where_memory_counts(mode: str, tmp_path: Path) -> None:
    model = load_model(folder_of("tied", tmp_path / "model"), dtype=torch.float32, quantize=mode)
    assert model.tied == mode.startswith("bnb.")
    assert isinstance(model.lm_head, QuantizedLinear) != model.tied


@pytest.mark.parametrize("chosen", ["int8", "int4"])
@pytest.mark.parametrize("case", ["llama-window", "neox", "gpt2", "tied", "mixture", "latent", "hybrid"])
def test_the_engine_says_what_the_naive_oracle_says(case: str, chosen: str, tmp_path: Path) -> None:
    model = load_model(folder_of(case, tmp_path / "model"), dtype=torch.float32, quantize=chosen)
    engine = Engine(model, slots=3)
    prompts = [[5, 9, 2], list(range(20)), [7]]
    requests = [engine.submit(prompt, Sampling(temperature=0), (), 8) for prompt in prompts]
    assert [request.result() for request in requests] == [naive(model, prompt, 8) for prompt in prompts]


def test_quantizing_in_place_is_what_reading_does(mode: str, tmp_path: Path) -> None:
    folder = folder_of("mixture", tmp_path / "model")
    model = load_model(folder, dtype=torch.float32)
    quantize_model(model, mode, torch.float32)
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens), load_model(folder, dtype=torch.float32, quantize=mode)(tokens))


@pytest.mark.parametrize(("chosen", "share"), [("int8", 0.54), ("int4", 0.34), ("bnb.nf4", 0.30), ("bnb.nf4-dq", 0.28)])
def test_weights_take_as_little_as_they_should(chosen: str, share: float) -> None:
    if chosen.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    layer = filled(chosen, torch.randn(512, 512), torch.bfloat16)
    state = getattr(layer, "state", None)
    scales = [] if state is None else [state.absmax] + ([state.state2.absmax] if state.state2 else [])
    size = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers(), *scales))
    assert size < share * 512 * 512 * 2


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("case", ["llama", "mixture"])
def test_updates_train_as_beside_the_dequantized_weights(case: str, dora: bool, mode: str, tmp_path: Path) -> None:
    folder = folder_of(case, tmp_path / "model")
    quantized = load_model(folder, dtype=torch.float32, quantize=mode)
    plain = with_dequantized(load_model(folder, dtype=torch.float32), quantized)
    method, tokens = LoRA(r=2, dropout=0.0, mlp=True, projection=True, head=True, dora=dora), torch.arange(30)[None]
    gradients = []
    for model in (quantized, plain):
        method.attach(model)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if method.owns(name):
                parameter.data = torch.randn(parameter.shape) * 0.1 + (1.0 if "magnitude" in name else 0.0)
        loss = F.cross_entropy(model.train()(tokens)[0, :-1], tokens[0, 1:])
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_quantized_heads_loss_is_that_of_its_dequantized_weight(mode: str, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    quantized = load_model(folder, dtype=torch.float32, quantize=mode)
    plain = with_dequantized(load_model(folder, dtype=torch.float32), quantized)
    tokens = torch.arange(30)[None]
    losses = [NextToken(model)(tokens[:, :-1], tokens[:, 1:]) for model in (quantized, plain)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


TRAINED = ["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.int8-training"]


@pytest.mark.parametrize("chosen", TRAINED)
def test_a_resumed_run_is_the_run_that_never_stopped(
    chosen: str,
    lit_folder: Path,  # noqa: F811
    data_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = dict(quantize=chosen, precision=None, lora_mlp=True)
    run(lora.setup, lit_folder, data_file, tmp_path, **settings)
    whole = {name: tensor.clone() for name, tensor in load_pth(tmp_path / "final" / "lit_model.pth.lora").items()}
    run(lora.setup, lit_folder, data_file, tmp_path, resume=tmp_path / "step-000002", **settings)
    resumed = load_pth(tmp_path / "final" / "lit_model.pth.lora")
    assert whole.keys() == resumed.keys() and all(tensor.is_floating_point() for tensor in whole.values())
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_what_was_trained_is_merged_into_the_weights_as_they_were(
    lit_folder: Path,  # noqa: F811
    data_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    run(lora.setup, lit_folder, data_file, tmp_path, quantize="bnb.nf4", lora_r=4)
    base, merged = load_model(lit_folder), load_pth(tmp_path / "final" / "lit_model.pth")
    method = LoRA(r=4)
    method.attach(base)
    base.load_state_dict(load_pth(tmp_path / "final" / "lit_model.pth.lora"), strict=False)
    for name, module in base.named_modules():
        if hasattr(module, "merge_into"):
            torch.testing.assert_close(merged[f"{name}.weight"], module.merge_into(module.linear.weight))
    assert all(tensor.is_floating_point() for tensor in merged.values())


@pytest.fixture(scope="module")
def updates(
    lit_folder: Path,  # noqa: F811
    data_file: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with updates of a model and nothing more."""
    return run(lora.setup, lit_folder, data_file, tmp_path_factory.mktemp("updates"), lora_r=4) / "step-000002"


def test_an_update_stays_beside_quantized_weights(
    lit_folder: Path,  # noqa: F811
    updates: Path,
    mode: str,
) -> None:
    found = find_finetuned(updates)
    assert found is not None
    model = found.load_model(dtype=torch.float32, quantize=mode)
    base = load_model(lit_folder, dtype=torch.float32, quantize=mode)
    layer, own = model.transformer.h[0].attn.qkv, base.transformer.h[0].attn.qkv
    x = torch.randn(3, 32)
    expected = own(x) + layer.scaling * F.linear(F.linear(x, layer.down()), layer.up())
    torch.testing.assert_close(layer(x), expected)
    assert (
        len(InferenceModel(model, *_talk(lit_folder)).engine().submit([1, 2], Sampling(temperature=0), (), 3).result())
        == 3
    )


def _talk(folder: Path) -> tuple[Any, Any]:
    inference_model = InferenceModel.load(folder, precision="32-true")
    return inference_model.tokenizer, inference_model.style


def test_adapters_train_beside_quantized_weights(
    lit_folder: Path,  # noqa: F811
    data_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    run(adapter_v2.setup, lit_folder, data_file, tmp_path, quantize="bnb.nf4")
    early, late = (load_pth(tmp_path / step / "lit_model.pth.adapter_v2") for step in ("step-000002", "final"))
    assert not [name for name, tensor in late.items() if torch.equal(tensor, early[name])]
    assert (
        InferenceModel.load(tmp_path / "final", "cpu", quantize="int8").engine().submit([1], Sampling(), (), 2).result()
    )


def test_dense_weight_is_that_of_any_linear() -> None:
    linear = nn.Linear(64, 16)
    assert dense_weight(linear) is linear.weight
    layer = filled("int8", linear.weight, torch.float32)
    assert torch.equal(dense_weight(layer), layer.dequantized())


# ---------------------------------------------------------------------------------------------- commands and refusals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("quantize") / "tiny")


@pytest.mark.parametrize("precision", ["32-true", "16-true", None])
def test_a_command_answers(mode: str, precision: str | None, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if mode == "bnb.int8-training":
        pytest.skip("for training")
    generate(folder, "Hi", quantize=mode, precision=precision, max_new_tokens=5)  # type: ignore[arg-type]
    printed = capfd.readouterr()
    assert printed.out.strip() and "bitsandbytes" not in printed.err and "kernels" not in printed.err


def test_llm_goes_between_quantized_and_plain(folder: Path) -> None:
    llm = LLM.load(folder)
    plain = llm.generate("Hi", max_new_tokens=5, temperature=0.0)
    llm.distribute(accelerator="cpu", quantize="int4")
    assert is_quantized(llm.model) and isinstance(llm.generate("Hi", max_new_tokens=5), str)
    with pytest.raises(LitGPTError, match="quantized model can't be saved"):
        llm.save(folder / "copy")
    llm.distribute(accelerator="cpu")
    assert not is_quantized(llm.model)
    assert llm.generate("Hi", max_new_tokens=5, temperature=0.0) == plain
    llm.distribute(accelerator="cpu", quantize="int8")
    llm.trainer_setup()
    assert not is_quantized(llm.model)


def test_a_model_with_other_weights_than_its_files_is_quantized_but_not_back(folder: Path) -> None:
    llm = LLM.load(folder, distribute=None)
    with torch.no_grad():
        llm.model.transformer.wte.weight.mul_(2)
    changed = copy.deepcopy(llm.model.transformer.wte.weight)
    llm.distribute(accelerator="cpu", precision="32-true", quantize="int8")
    assert is_quantized(llm.model) and torch.equal(llm.model.transformer.wte.weight, changed)
    for again in (lambda: llm.distribute(accelerator="cpu"), llm.trainer_setup):
        with pytest.raises(LitGPTError, match="A quantized model can't be"):
            again()


@pytest.mark.parametrize(
    ("chosen", "device", "dtype", "words"),
    [
        ("bnb.nf5", "cpu", torch.float32, "There is no --quantize bnb.nf5. Closest: bnb.nf4"),
        ("gptq", "cpu", torch.float32, "There is no --quantize gptq"),
        ("bnb.nf4", "mps", torch.float32, "no kernels for mps"),
        ("int4", "mps", torch.float32, "no kernel for mps"),
        ("int4", "cuda", torch.float16, "compute capability 8.0 and --precision bf16-true"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(chosen: str, device: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(LitGPTError, match=words) as caught:
        check_quantization(chosen, torch.device(device), dtype)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_absent_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from litgpt.quantize.bnb import bitsandbytes

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    bitsandbytes.cache_clear()
    try:
        with pytest.raises(LitGPTError, match=r"needs bitsandbytes.*pip install 'litgpt\[quant\]'"):
            check_quantization("bnb.nf4", torch.device("cpu"), torch.float32)
    finally:
        bitsandbytes.cache_clear()


def test_a_torch_without_the_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CPU_KERNELS", ("_no_such_product", *kernels.CPU_KERNELS))
    with pytest.raises(LitGPTError, match="needs torch 2.11 or newer: .* has no _no_such_product"):
        check_quantization("int4", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("asked", "training", "chosen"),
    [
        (None, True, "bf16-true"),
        (None, False, "bf16-true"),
        ("32-true", True, "32-true"),
        ("16-true", False, "16-true"),
    ],
)
def test_one_dtype_is_computed_in(
    asked: str | None, training: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: True)
    assert quantized_precision("int8", asked, training, "cpu") == chosen
    assert quantized_precision(None, None, True, "cpu") == "bf16-mixed"
    with pytest.raises(LitGPTError, match="computes in one dtype; use --precision bf16-true"):
        quantized_precision("int8", "bf16-mixed", training, "cpu")
    with pytest.raises(LitGPTError, match="16-true is no precision to train in"):
        quantized_precision("int8", "16-true", True, "cpu")


def test_a_damaged_checkpoint_is_told_as_without_quantization(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    state = dict(load_pth(folder / "lit_model.pth"))
    del state["transformer.h.1.mlp.fc_1.weight"]
    save_state(folder / "lit_model.pth", state)
    with pytest.raises(LitGPTError, match="no tensor 'transformer.h.1.mlp.fc_1.weight'"):
        load_model(folder, quantize="int8")


def test_weights_of_4_bits_stay_on_their_device() -> None:
    layer = filled("int4", torch.randn(64, 64), torch.float32)
    layer.to(torch.float32)
    with pytest.raises(LitGPTError, match="4 bits can't be moved"):
        layer.to("meta")


def test_a_model_that_was_moved_still_computes(mode: str) -> None:
    model = GPT(Config(n_layer=1, n_embd=64, n_head=2, padded_vocab_size=32, block_size=16))
    quantize_model(model, mode, torch.float32)
    tokens = torch.arange(8)[None]
    before = model(tokens)
    assert torch.equal(model.to("cpu").float()(tokens), before)


# ------------------------------------------------------------------------------------------------------ real weights

MEASURED = """
import re, sys, torch
from litgpt.checkpoint.reader import load_model
from litgpt.quantize import check_quantization
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
check_quantization(sys.argv[2], torch.device("cpu"), torch.bfloat16)
before = memory("RssAnon"), memory("VmRSS")
model = load_model(sys.argv[1], dtype=torch.bfloat16, quantize=sys.argv[2])
print(memory("RssAnon") - before[0], memory("VmHWM") - before[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("chosen", "most", "on_the_way"),
    [("bnb.nf4", 0.55, 0.95), ("bnb.nf4-dq", 0.55, 0.95), ("int4", 0.65, 1.0), ("int8", 0.8, 1.15)],
)
def test_real_weights_take_less_memory_and_little_more_on_the_way(
    chosen: str, most: float, on_the_way: float, smollm2: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED, str(smollm2), chosen], capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr
    kept, peak = map(int, done.stdout.split())
    plain = (smollm2 / "model.safetensors").stat().st_size
    assert kept < most * plain and peak < on_the_way * plain, (kept / plain, peak / plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "factor"),
    [("int8", 1.01), ("int4", 1.02), ("bnb.int8", 1.01), ("bnb.nf4", 1.4), ("bnb.nf4-dq", 1.4), ("bnb.fp4", 2.0)],
)
def test_real_weights_keep_their_perplexity(chosen: str, factor: float, smollm2: Path, shared_assets: Path) -> None:
    text = (shared_assets / "text" / "janeausten" / "emma.txt").read_text()[20_000:26_000]
    inference_model = InferenceModel.load(smollm2, "cpu", "bf16-true")
    use_fast_linear(inference_model.model, 0)
    tokens = torch.tensor(inference_model.tokenizer.encode_ids(text, bos=False)[:1024]).view(4, 256)
    quantized = load_model(smollm2, dtype=torch.bfloat16, quantize=chosen)
    assert perplexity(quantized, tokens) < factor * perplexity(inference_model.model, tokens)


@torch.no_grad()
def perplexity(model: GPT, tokens: Tensor) -> float:
    logits = model(tokens)
    assert isinstance(logits, Tensor)
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).exp())


class Launches(TorchDispatchMode):
    """Counts operations that compute or copy; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 64, 500])
def test_away_from_the_cpu_a_product_with_8_bits_is_three_kernels(rows):
    """Of 4096 x 4096 weights, of which a CPU takes sixteen parts; `meta` stands for another device."""
    weight = torch.empty(4096, 4096, dtype=torch.int8, device="meta")
    x, scale = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in ((rows, 4096), (4096,)))
    with Launches() as launches:
        assert kernels.int8_product(x, weight, scale).shape == (rows, 4096)
    assert launches.n <= 4  # one of them transposes
