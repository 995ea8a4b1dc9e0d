"""PEFT's folders open here and ours there, with equal logits, and come back as they were."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.finetuned import find_finetuned, find_update
from litgpt.checkpoint.peft_folder.writer import to_peft
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_state
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.peft import owned_state
from litgpt.scripts.convert_from_litgpt import convert_from_litgpt
from litgpt.scripts.merge_lora import merge_lora
from tests.tiny import hf_folder

TOKENS = torch.arange(3, 23)[None]
ALL = {"query": True, "key": True, "value": True, "projection": True, "mlp": True}
MIXTURES = ("mixtral", "qwen3-moe")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, by its case."""
    pytest.importorskip("peft")
    made: dict[str, Path] = {}

    def base(case: str) -> Path:
        if case not in made:
            made[case] = hf_folder(case, tmp_path_factory.mktemp(case))
        return made[case]

    return base


def hf(base: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def peft_folder(base: Path, folder: Path, vocabulary: int | None = None, **settings: Any) -> torch.Tensor:
    """A folder as PEFT writes it, of an update that does something; and PEFT's logits.

    `vocabulary`: the model has so many tokens before it is trained.
    """
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12, **settings})
    with warnings.catch_warnings():  # its advice
        warnings.simplefilter("ignore")
        model = hf(base)
        if vocabulary is not None:
            model.resize_token_embeddings(vocabulary)
        model = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            return model(TOKENS).logits


def peft_logits(base: Path, folder: Path) -> torch.Tensor:
    """What PEFT computes with a folder."""
    import peft

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(hf(base), folder).eval()(TOKENS).logits


def lora_folder(base: Path, folder: Path, **settings: Any) -> torch.Tensor:
    """A folder as a LoRA run leaves it, of an update that does something; and the logits."""
    torch.manual_seed(2)
    lora = LoRA(**{"r": 4, "dropout": 0.0, **settings})
    model = load_model(base, dtype=torch.float32)
    lora.attach(model)
    for name, parameter in model.named_parameters():
        if lora.owns(name):
            parameter.data += 0.1 * torch.randn_like(parameter)
    folder.mkdir()
    save_state(folder / "lit_model.pth.lora", owned_state(model, lora.owns), wrap="model")
    said = {f"lora_{name}": value for name, value in lora.settings().items()}
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump({**said, "checkpoint_dir": str(base)}))
    with torch.no_grad():
        return model.eval()(TOKENS)


def our_logits(folder: Path) -> torch.Tensor:
    found = find_finetuned(folder)
    assert found is not None
    with torch.no_grad():
        return found.load_model(dtype=torch.float32)(TOKENS)


THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("llama-tied", {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}),
    ("llama", {"target_modules": "all-linear", "use_dora": True}),
    ("llama", {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"1.mlp.down_proj": 6}}),
    ("llama", {"target_modules": ["gate_proj", "lm_head"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    (
        "llama-biased",
        {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm", "k_proj", "q_proj", "v_proj"]},
    ),
    ("gemma2", {"target_modules": "all-linear", "alpha_pattern": {"o_proj": 7}}),
    ("qwen2", {"target_modules": "all-linear"}),
    ("phi3", {"target_modules": "all-linear", "use_dora": True}),
    ("neox", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}),
    ("gpt2", {"target_modules": "all-linear", "use_dora": True, "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["wte", "ln_f"], "fan_in_fan_out": True}),
    ("falcon-40b-like", {"target_modules": ["query_key_value"], "use_rslora": True}),
    ("mixtral", {"target_modules": "all-linear"}),
    ("qwen3-moe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"], "use_rslora": True}),
]


@pytest.mark.parametrize(
    ("case", "settings"), THEIRS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_peft_folder_opens_with_equal_logits_and_is_written_as_it_was(
    case: str, settings: dict[str, Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(case)
    expected = peft_folder(base, tmp_path / "theirs", **settings)
    torch.testing.assert_close(our_logits(tmp_path / "theirs"), expected, rtol=1e-4, atol=1e-4)
    to_peft(tmp_path / "theirs", tmp_path / "again")
    torch.testing.assert_close(peft_logits(base, tmp_path / "again"), expected, rtol=1e-5, atol=1e-5)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "again"))
    only_saved_along = (
        {name for name in before if "base_layer.weight" in name} if "lm_head" in settings["target_modules"] else set()
    )
    before = {name: tensor for name, tensor in before.items() if name in after or "embed_tokens" not in name}
    assert before.keys() - only_saved_along == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


Q = {"target_modules": ["q_proj"]}
WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"]}
DORA = {"target_modules": "all-linear", "use_dora": True}
TIED = {"ensure_weight_tying": True}
ANOTHER_WAY: dict[str, tuple[str, dict[str, Any]]] = {
    "parts of other ranks": ("llama", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}),
    "parts of other scalings": (
        "qwen2",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj"],
            "alpha_pattern": {"v_proj": 2, "k_proj": 3},
            "rank_pattern": {"0.self_attn.q_proj": 6},
            "use_rslora": True,
        },
    ),
    "parts of other ranks and magnitudes": (
        "llama",
        {
            "target_modules": "all-linear",
            "use_dora": True,
            "rank_pattern": {"q_proj": 6},
            "alpha_pattern": {"v_proj": 2},
        },
    ),
    "an update of a tied head": ("llama-tied", {"target_modules": ["q_proj", "lm_head"]}),
    "an update of the embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "an update of a tied embedding": ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "an update of embedding and head": ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"], **TIED}),
    "a whole embedding and head": ("llama-tied", {**Q, "modules_to_save": ["lm_head"], **TIED}),
    "tokens": ("llama", {**Q, "trainable_token_indices": [3, 5]}),
    "tokens alone": ("llama-tied", {"target_modules": ["lm_head"], "trainable_token_indices": [3, 5]}),
    "tokens of a tied embedding": ("llama-tied", {**Q, "trainable_token_indices": [3, 5], **TIED}),
    "tokens of both": ("llama", {**Q, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4, 7, 8]}}),
    "tokens by module": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "trainable_token_indices": {"wte": [3, 5]}},
    ),
    "more tokens": ("llama", {**Q, "vocabulary": 100}),
    "more tokens, tied": ("llama-tied", {**Q, "vocabulary": 100}),
    "more tokens, whole": ("llama", {**Q, **WHOLE, "vocabulary": 100}),
    "more tokens, some trained": ("llama-tied", {**Q, "vocabulary": 100, "trainable_token_indices": [3, 98]}),
    "fewer tokens, an update": ("llama-tied", {"target_modules": ["q_proj", "lm_head"], "vocabulary": 90}),
    "more tokens with a bias": ("phi", {**Q, "vocabulary": 100}),
}


@pytest.mark.parametrize("name", ANOTHER_WAY)
def test_what_peft_holds_in_another_way_opens_merges_and_is_written_with_equal_logits(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    case, settings = ANOTHER_WAY[name]
    base = bases(case)
    expected = peft_folder(base, tmp_path / "theirs", **settings)
    found = find_finetuned(tmp_path / "theirs")
    assert found is not None
    for _ in range(2):  # opening it leaves nothing changed
        with torch.no_grad():
            opened = found.load_model(dtype=torch.float32)(TOKENS)
        torch.testing.assert_close(opened, expected, rtol=1e-4, atol=1e-4)
    to_peft(tmp_path / "theirs", tmp_path / "again")
    torch.testing.assert_close(our_logits(tmp_path / "again"), expected, rtol=1e-4, atol=1e-4)
    if "vocabulary" not in settings:  # PEFT itself wants the model made larger before
        torch.testing.assert_close(peft_logits(base, tmp_path / "again"), expected, rtol=1e-4, atol=1e-4)
    merge_lora(tmp_path / "theirs", precision="32-true")
    convert_from_litgpt(tmp_path / "theirs", tmp_path / "hf")
    with torch.no_grad():
        torch.testing.assert_close(hf(tmp_path / "hf")(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


OURS: list[tuple[str, dict[str, Any]]] = [
    ("llama-tied", {}),
    ("llama", {**ALL, "rslora": True, "dora": True}),
    ("llama", {"target": "attn.qkv,mlp.*", "rank_pattern": {"h.1.*": 6}, "modules_to_save": "norm_1,wte"}),
    ("gemma", {**ALL, "head": True}),
    ("qwen3", {"init": "pissa", "rslora": True, "modules_to_save": "lm_head"}),
    ("phi3", {"dora": True}),
    ("phi3", {**ALL}),
    ("phi3", {"target": "fc_2,attn.value", "dora": True}),
    ("neox", {"dora": True, "key": True}),
    ("gpt2", {**ALL, "head": True, "rslora": True}),
    ("mixtral", {**ALL, "rslora": True}),
    ("qwen3-moe", {"target": "experts.fc_2,attn.key", "alpha_pattern": {"attn.*": 3}}),
    ("deepseek-v3", {"target": "attn.*"}),
]


@pytest.mark.parametrize(
    ("case", "settings"), OURS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_updates_of_ours_are_pefts_and_come_back_as_they_were(
    case: str, settings: dict[str, Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(case)
    expected = lora_folder(base, tmp_path / "ours", **settings)
    torch.testing.assert_close(our_logits(tmp_path / "ours"), expected, rtol=1e-4, atol=5e-4)
    to_peft(tmp_path / "ours", tmp_path / "peft")
    torch.testing.assert_close(peft_logits(base, tmp_path / "peft"), expected, rtol=1e-4, atol=1e-4)
    before, after = find_finetuned(tmp_path / "ours"), find_finetuned(tmp_path / "peft")
    assert before is not None and after is not None and after.method == before.method
    ours, back = before.learned(), after.learned()
    assert ours.keys() == back.keys() and all(torch.equal(ours[name], back[name]) for name in ours)


def test_the_round_trip_needs_no_header_of_ours(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """What PEFT has written again counts by its tensors; here the three of a fused layer became one."""
    expected = lora_folder(bases("gpt2"), tmp_path / "ours", **ALL)
    to_peft(tmp_path / "ours", tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["litgpt"])["query"] is True
    save_file(load_file(file), file, metadata={"format": "pt"})
    found = find_finetuned(tmp_path / "peft")
    assert found is not None and isinstance(found.method, LoRA)
    assert found.method.rank_pattern == {"transformer.h.*.attn.qkv": 12}
    torch.testing.assert_close(our_logits(tmp_path / "peft"), expected, rtol=1e-4, atol=1e-4)


def test_a_folder_that_litgpts_switches_can_say_gets_these(bases: Callable[[str], Path], tmp_path: Path) -> None:
    peft_folder(bases("llama"), tmp_path / "theirs", target_modules=["q_proj", "v_proj", "lm_head"])
    found = find_finetuned(tmp_path / "theirs")
    assert found is not None and found.method == LoRA(r=4, alpha=12, dropout=0.0, head=True)


def test_merging_leaves_a_folder_that_needs_nothing_else(bases: Callable[[str], Path], tmp_path: Path) -> None:
    expected = peft_folder(bases("qwen2"), tmp_path / "theirs", target_modules="all-linear", use_dora=True)
    merge_lora(tmp_path / "theirs", precision="32-true")
    assert find_finetuned(tmp_path / "theirs") is None
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "theirs")(TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_a_merged_folder_still_gives_its_updates(bases: Callable[[str], Path], tmp_path: Path) -> None:
    lora_folder(bases("llama"), tmp_path / "ours")
    merge_lora(tmp_path / "ours")
    convert_from_litgpt(tmp_path / "ours", tmp_path / "peft", output_format="peft")
    assert find_update(tmp_path / "peft") is not None


def test_the_bin_of_older_pefts_and_a_base_that_moved(bases: Callable[[str], Path], tmp_path: Path) -> None:
    expected = peft_folder(bases("llama"), tmp_path / "theirs", target_modules=["q_proj"])
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    torch.testing.assert_close(our_logits(tmp_path / "theirs"), expected, rtol=1e-4, atol=1e-4)
    change(tmp_path / "theirs", base_model_name_or_path="org/gone")
    with pytest.raises(LitGPTError, match="no checkpoint folder org/gone"):
        find_finetuned(tmp_path / "theirs")
    merge_lora(tmp_path / "theirs", pretrained_checkpoint_dir=bases("llama"))
    assert (tmp_path / "theirs" / "lit_model.pth").is_file()


def change(folder: Path, **settings: Any) -> None:
    """Other settings in `adapter_config.json`."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rename(folder: Path, old: str, new: str, drop: str = "nothing") -> None:
    """Other names of tensors."""
    file = folder / "adapter_model.safetensors"
    save_file({n.replace(old, new): t for n, t in load_file(file).items() if drop not in n}, file)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: change(f, peft_type="LOHA"), "of the kind LOHA"),
        (lambda f: change(f, bias="all"), 'has bias: "all"'),
        (lambda f: change(f, lora_bias=True), "has lora_bias: true"),
        (lambda f: change(f, layer_replication=[[0, 2]]), "has layer_replication"),
        (lambda f: change(f, trainable_token_indices=[1]), "holds no rows of these tokens"),
        (lambda f: change(f, task_type="SEQ_CLS"), "trained for SEQ_CLS"),
        (lambda f: change(f, init_lora_weights="pissa_niter_4"), "init_lora_weights pissa_niter_4"),
        (lambda f: change(f, r=5), "rank 5 is said"),
        (lambda f: change(f, rank_pattern={"q_proj": 2}), "rank 2 is said"),
        (lambda f: change(f, base_model_name_or_path=None), "no base_model_name_or_path"),
        (lambda f: change(f, use_dora=True), "lora_magnitude"),
        (lambda f: rename(f, "q_proj", "x_proj"), "x_proj, which is no linear layer"),
        (lambda f: rename(f, "lora_", "lora_embedding_"), "only linear layers"),
        (lambda f: rename(f, "", "", drop="lora_B"), "it holds lora_A, not lora_A, lora_B"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"nothing"), "damaged"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    spoil: Callable[[Path], None], complaint: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    peft_folder(bases("llama"), tmp_path, target_modules=["q_proj", "v_proj"])
    spoil(tmp_path)
    with pytest.raises(LitGPTError, match=complaint) as caught:
        find_finetuned(tmp_path)
    assert "\n" not in str(caught.value)


def test_magnitudes_of_experts_are_refused_rather_than_left_out(bases: Callable[[str], Path], tmp_path: Path) -> None:
    peft_folder(bases("qwen3-moe"), tmp_path, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    experts = next(name for name in tensors if name.endswith("experts.lora_A.weight"))
    magnitude = experts.replace("lora_A.weight", "lora_magnitude_vector")
    save_file({**tensors, magnitude: torch.ones(1)}, file)
    with pytest.raises(LitGPTError, match="experts it holds lora_A, lora_B, lora_magnitude, not lora_A, lora_B"):
        find_finetuned(tmp_path)


@pytest.mark.parametrize(
    ("case", "settings", "complaint"),
    [
        ("mixtral", {**ALL, "dora": True}, "PEFT has no DoRA of experts"),
        ("gpt-oss", {"mlp": True}, "can't be written for PEFT"),
        ("deepseek-v3", {"mlp": True}, "which is no expert, for one of the experts"),
        ("phi3", {"modules_to_save": "fc_1"}, "not trained whole with its neighbours"),
    ],
)
def test_what_peft_has_no_place_for_is_told_and_nothing_written(
    case: str, settings: dict[str, Any], complaint: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    lora_folder(bases(case), tmp_path / "ours", **settings)
    with pytest.raises(LitGPTError, match=complaint) as caught:
        to_peft(tmp_path / "ours", tmp_path / "peft")
    assert "\n" not in str(caught.value) and not (tmp_path / "peft").exists()


def test_a_folder_without_updates_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="holds no LoRA updates"):
        to_peft(bases("llama"), tmp_path / "peft")
