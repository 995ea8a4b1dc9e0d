"""`Config` means what LitGPT's does: same names, same fields, same files."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict

import pytest
import torch
import yaml

from litgpt.config import Config, configs, name_to_config
from litgpt.errors import LitGPTError
from litgpt.families import FAMILIES
from litgpt.model import GPT
from tests.paths import GOLDEN
from tests.tiny import CASES, WIDE, wide_ones_slow

CONFIGS = json.loads((GOLDEN / "configs.json").read_text())
STATE_DICTS = json.loads((GOLDEN / "state_dict_one_layer.json").read_text())
LITGPT_NAMES = sorted(CONFIGS["configs"])


def test_known_names_are_unique_and_listed_once():
    assert len(configs) == len(name_to_config) == len({row["name"] for row in configs})


def test_all_of_litgpts_names_are_known():
    assert len(LITGPT_NAMES) == 210 and {*LITGPT_NAMES} <= {*name_to_config}


@pytest.mark.parametrize("name", LITGPT_NAMES)
def test_every_field_equals_litgpts(name):
    expected = {**CONFIGS["common"], **CONFIGS["configs"][name], "name": name}
    org, hub_name = expected.pop("hf").split("/")
    expected["hf_config"] = {"org": org, "name": hub_name}
    ours = asdict(Config.from_name(name))
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.parametrize("group", STATE_DICTS, ids=lambda group: next(iter(group["parameters"])))
def test_state_dict_names_and_sizes_equal_litgpts(group):
    for name in group["parameters"]:
        with torch.device("meta"):
            state = GPT(Config.from_name(name, n_layer=1)).state_dict()
        assert list(dict.fromkeys(re.sub(r"experts\.\d+\.", "experts.{}.", key) for key in state)) == group["tensors"]
        assert sum(tensor.numel() for tensor in state.values()) == group["parameters"][name]


@pytest.mark.parametrize(
    "name",
    [
        "Llama-3.2-1B",
        "meta-llama/Llama-3.2-1B",
        "Meta-Llama-3-8B",
        "meta-llama/Meta-Llama-3-8B",
        "meta-llama/Llama-3-8B",
    ],
)
def test_a_size_is_found_by_each_of_its_names(name):
    assert Config.from_name(name).n_head == 32


def test_an_unknown_name_is_told_with_the_closest():
    with pytest.raises(LitGPTError, match=r"Closest: Llama-3\.2-1B"):
        Config.from_name("Llama-3.2-1b-")


def test_an_unknown_setting_is_told_with_the_closest():
    with pytest.raises(LitGPTError, match="Closest: n_layer"):
        Config.from_name("pythia-14m", n_layers=3)


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "pythia-14m", "Mistral-7B-v0.1"])
def test_the_written_file_holds_litgpts_51_keys_and_reads_back(name, tmp_path):
    config = Config.from_name(name)
    config.save(tmp_path)
    assert len(yaml.safe_load((tmp_path / "model_config.yaml").read_text())) == 51
    assert Config.from_file(tmp_path / "model_config.yaml") == config


def test_own_fields_that_nothing_else_tells_are_written(tmp_path):
    config = Config(
        name="mine", n_layer=2, n_embd=32, n_head=2, learned_positions=True, rotary_percentage=0.0, norm_bias=False
    )
    config.save(tmp_path)
    assert Config.from_checkpoint(tmp_path) == config


@pytest.mark.parametrize("content", ["- 1\n", "", "a: [", "\xff"])
def test_a_file_that_is_no_mapping_is_told(content, tmp_path):
    path = tmp_path / "model_config.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(LitGPTError, match=r"model_config\.yaml"):
        Config.from_file(path)


def test_a_named_size_is_recognised_in_a_hugging_face_folder(tmp_path):
    config = Config.from_name("SmolLM2-135M")
    folder = tmp_path / "SmolLM2-135M"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.family.write_hf(config)))
    assert Config.from_checkpoint(folder) == config


def test_a_folder_is_read_by_its_path_alone(tmp_path):
    config = Config.from_name("SmolLM2-135M")
    folder = tmp_path / "SmolLM2-135M"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.family.write_hf(config)))
    assert Config.from_hf(folder) == Config.from_hf(str(folder)) == config
    assert Config.from_hf(folder, name="another").name == "another"


def test_a_folder_under_checkpoints_is_read_before_the_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.from_name("SmolLM2-135M")
    folder = tmp_path / "checkpoints" / "someone" / "tuned"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.family.write_hf(config)))
    assert Config.from_hf("someone/tuned").name == "tuned"


@pytest.mark.parametrize(("make", "words"), [("mkdir", "has no config.json"), ("touch", "is a file")])
def test_a_path_without_a_configuration_is_told(tmp_path, make, words):
    path = tmp_path / "there"
    getattr(path, make)()
    with pytest.raises(LitGPTError, match=words):
        Config.from_hf(path)


def test_a_changed_named_size_is_not_mistaken_for_it(tmp_path):
    config = Config.from_name("SmolLM2-135M", n_layer=3)
    found = Config.from_hf(config.family.write_hf(config), name="SmolLM2-135M")
    assert found.n_layer == 3


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(LitGPTError, match="MambaForCausalLM"):
        Config.from_hf({"architectures": ["MambaForCausalLM"]})


def test_an_unknown_field_that_changes_the_computation_is_refused_by_name():
    hf_config = Config.from_name("SmolLM2-135M").family.write_hf(Config.from_name("SmolLM2-135M"))
    with pytest.raises(LitGPTError, match="residual_multiplier"):
        Config.from_hf({**hf_config, "residual_multiplier": 0.22})


@pytest.mark.parametrize("off", [False, 0, 0.0, "", [], {}])
def test_an_unknown_field_that_is_off_is_refused_and_one_that_is_null_is_not(off):
    config = Config.from_name("SmolLM2-135M")
    hf_config = config.family.write_hf(config)
    assert Config.from_hf({**hf_config, "norm_weights": None}) == Config.from_hf(hf_config)
    with pytest.raises(LitGPTError, match="norm_weights"):
        Config.from_hf({**hf_config, "norm_weights": off})


@pytest.mark.parametrize("name", [next(iter(family.rows)) for family in FAMILIES if family.rows])
def test_swish_is_silu(name):
    config = Config.from_name(name)
    hf_config = config.family.write_hf(config)
    if hf_config.get("hidden_act") == "silu":
        assert Config.from_hf({**hf_config, "hidden_act": "swish"}, name=name) == config


def test_an_unknown_activation_is_refused():
    hf_config = Config.from_name("SmolLM2-135M").family.write_hf(Config.from_name("SmolLM2-135M"))
    with pytest.raises(LitGPTError, match="hidden_act"):
        Config.from_hf({**hf_config, "hidden_act": "prelu"})


# What the files on the hub say besides.
SAID_BESIDES = {
    "gpt2-medium": {"n_ctx": 1024, "n_special": 0, "predict_special_tokens": True},
    "gpt2-xl": {"n_special": 0, "output_past": True, "predict_special_tokens": True, "summary_use_proj": True},
    "Gemma-2-9b": {"sliding_window_size": 4096, "cache_implementation": "hybrid"},
    "Gemma-2-27b": {"sliding_window_size": 4096, "_attn_implementation": "eager"},
    "Gemma-3-270m": {"_sliding_window_pattern": 6, "use_bidirectional_attention": False},
    "Phi-4-mini-instruct": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
    "phi-1_5": {"rotary_dim": 32, "qk_layernorm": False, "embd_pdrop": 0.1},
    "Qwen2.5-7B-Instruct-1M": {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}},
    "falcon-7b": {"apply_residual_connection_post_layernorm": False, "num_kv_heads": 71},
    "Llama-3.1-8B": {"_attn_implementation_autoset": True, "mlp_bias": False},
    "SmolLM2-135M": {"is_llama_config": True, "rope_interleaved": False, "temperature": 0.7, "num_beams": 1},
}


@pytest.mark.parametrize("name", SAID_BESIDES)
def test_what_real_files_say_besides_is_read_or_changes_nothing(name):
    config = Config.from_name(name)
    assert Config.from_hf({**config.family.write_hf(config), **SAID_BESIDES[name]}, name=config.name) == config


def as_transformers_4_writes_it(hf_config: dict) -> dict:
    """The settings of RoPE beside the others, and only what is scaled in a group."""
    old = dict(hf_config)
    by_layer = old.pop("rope_parameters")
    rope = dict(by_layer.get("full_attention", by_layer))
    if old["model_type"] == "gemma3_text":
        old["rope_local_base_freq"] = by_layer["sliding_attention"]["rope_theta"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            old[key] = rope.pop(key)
    if old["model_type"] == "phi3":
        rope.pop("original_max_position_embeddings", None)
    return {**old, "rope_scaling": {"type": rope.pop("rope_type"), **rope} if len(rope) > 1 else None}


ROPES = (
    "llama-3-rope llama-linear-rope llama-yarn-mscale llama-yarn-untruncated phi3-longrope phi4-mini-like glm4 gemma3"
)


@pytest.mark.parametrize("case", [*ROPES.split(), "olmo3-yarn", "deepseek-v3-yarn", "gpt-oss", "qwen3-next", "llama4"])
def test_both_ways_of_writing_rope_mean_the_same(case):
    import transformers

    kind, settings = CASES[case]
    new = getattr(transformers, kind)(**settings).to_dict()
    assert Config.from_hf(as_transformers_4_writes_it(new)) == Config.from_hf(new)


def test_yarn_stretches_the_whole_context_where_nothing_else_is_said():
    config = Config.from_name("Llama-2-7b-hf")
    scaling = {"type": "yarn", "factor": 4.0}
    adjust = Config.from_hf({**config.family.write_hf(config), "rope_scaling": scaling}).rope_adjustments
    assert adjust == {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_seq_len": 4096}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt-oss-20b", {"swiglu_alpha": 1.5}),
        ("Phi-4-mini-instruct", {"interpolate_factor": 2}),
        ("Gemma-2-9b", {"sliding_window_size": 512}),
        ("Gemma-3-270m", {"use_bidirectional_attention": True}),
        ("falcon-7b", {"ff_factor": 3}),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}),
    ],
)
def test_another_value_of_such_a_key_is_refused_by_name(name, other):
    config = Config.from_name(name)
    with pytest.raises(LitGPTError, match=next(iter(other))):
        Config.from_hf({**config.family.write_hf(config), **other})


@pytest.mark.parametrize("change", [{"n_embd": 30, "n_head": 4}, {"n_head": 4, "n_query_groups": 3}])
def test_head_counts_that_do_not_divide_are_told(change):
    with pytest.raises(LitGPTError, match="multiple"):
        Config(**{"n_embd": 32, **change})


@pytest.mark.parametrize("named", [Config.from_name(name) for name in LITGPT_NAMES], ids=LITGPT_NAMES)
def test_hugging_face_config_round_trip(named):
    back = Config.from_hf(named.family.write_hf(named), name=named.name)
    changed = {key: (value, asdict(back)[key]) for key, value in asdict(named).items() if asdict(back)[key] != value}
    # A condensed RoPE is a linear scaling by the same factor.
    assert set(changed) <= (
        {"rope_condense_ratio", "rope_adjustments", "vocab_size", "padding_multiple", "hf_config"} if changed else set()
    )
    if named.rope_condense_ratio == 1:
        assert not changed


def test_a_narrowed_pythia_has_a_narrower_mlp():
    assert Config.from_name("pythia-14m", n_embd=32).intermediate_size == 128


GROUPS = {
    "mlp_class_name": "LLaMAMoE",
    **dict(n_expert=4, n_expert_per_token=1, n_expert_groups=2, n_topk_groups=1, n_topk_scores_per_group=1),
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n_layer": "two"}, "n_layer is 'two'"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"bias": 1}, "bias is 1"),
        ({"norm_eps": None}, "norm_eps is None"),
        ({"mlp_class_name": "MLP"}, "mlp_class_name is 'MLP'"),
        ({"sliding_window_size": 4, "sliding_window_indices": [1]}, "1 entries for 16 layers"),
        ({"rope_layers": [1, "a"]}, "rope_layers"),
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 4}, "n_expert_per_token"),
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 5}, "n_expert_per_token"),
        ({"latent_attention": {}}, "latent_attention needs a size as its q?"),
        ({"linear_attention": {"n_key_heads": 0}}, "linear_attention needs a size as its n_key_heads"),
        ({"latent_attention": {"q_lora_rank": -1}}, "latent_attention needs a size as its q_lora_rank, and has -1"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"padded_vocab_size": 0}, "padded_vocab_size is 0"),
        ({"sliding_window_size": 0}, "sliding_window_size is 0"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0; it must be above 0"),
        ({"rotary_percentage": 2.0}, "rotary_percentage is 2.0"),
        ({"head_size": 5, "rotary_percentage": 1.0}, "rotate in pairs, and there are 5"),
        ({"rope_layers": [2] * 16}, "rope_layers is .*; it must be 0 or 1 for each layer"),
        ({"rope_indices": [1] * 16}, "need rope_local_base_freq"),
        ({"rope_adjustments": {"factor": 0.0}}, "rope_adjustments needs a size as its factor, and has 0.0"),
        ({"query_tuning": {"scale": 1.0}}, "query_tuning needs a size as its floor, and has None"),
        ({"query_tuning": {"floor": 1}}, "query_tuning needs floor, offset, scale, unturned_only"),
        ({"shared_attention_norm": True, "parallel_residual": False}, "needs parallel_residual"),
        ({**GROUPS, "n_expert_groups": 3}, "is a multiple of n_expert_groups"),
        ({**GROUPS, "n_topk_groups": None}, "is from 1 to that"),
        ({**GROUPS, "n_topk_scores_per_group": 3}, "a group has 2 experts"),
        (
            {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 1, "n_shared_expert": 1},
            "need moe_intermediate_size",
        ),
    ],
)
def test_a_value_that_no_model_can_have_is_told_with_its_name(change, word):
    with pytest.raises(LitGPTError, match=word):
        Config(**change)


def test_a_number_without_a_point_is_a_number_all_the_same(tmp_path):
    path = tmp_path / "model_config.yaml"
    path.write_text("n_embd: 32\nn_head: 4\nnorm_eps: 1e-6\nattention_logit_softcapping: 5e1\n")
    config = Config.from_file(path)
    assert (config.norm_eps, config.attention_logit_softcapping) == (1e-6, 50.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [("n_embd: wide", "The model setting n_embd is 'wide'"), ("5: 1", "5 is not a model setting")],
)
def test_a_bad_value_in_a_file_is_told_with_the_file(content, told, tmp_path):
    path = tmp_path / "model_config.yaml"
    path.write_text(content)
    with pytest.raises(LitGPTError, match=rf"model_config\.yaml can't be used: {told}"):
        Config.from_file(path)


@pytest.mark.parametrize("architectures", [5, [["x"]], ["NobodyKnowsForCausalLM"]])
def test_a_config_json_beside_that_tells_of_no_family_changes_nothing(architectures, tmp_path):
    config = Config(name="mine", n_layer=2, n_embd=8, n_head=2)
    config.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert Config.from_checkpoint(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"quantization_config": "fp8"}, "has `quantization_config`: 'fp8', which is no list of settings"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "`factor`: None in its RoPE settings, which yarn can't have"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "`factor`: 'two'"),
    ],
)
def test_a_strange_setting_of_a_config_json_is_told_with_its_name(change, word):
    hf_config = Config.from_name("Llama-3.2-1B").family.write_hf(Config.from_name("Llama-3.2-1B"))
    with pytest.raises(LitGPTError, match=word):
        Config.from_hf({**hf_config, **change})


@pytest.mark.parametrize(
    "kind", wide_ones_slow(sorted({kind for kind, _ in CASES.values()}), {kind for kind, _ in WIDE.values()})
)
def test_no_config_json_ends_in_a_traceback(kind):
    """Whatever key is missing or has a strange value, it is read or refused in a sentence."""
    import transformers

    settings = next(settings for name, settings in CASES.values() if name == kind)
    whole = getattr(transformers, kind)(**settings).to_dict()
    Config.from_hf(whole)
    for key in whole:
        broken = [{theirs: value for theirs, value in whole.items() if theirs != key}]
        broken += [{**whole, key: value} for value in (None, "abc", -1, 0, [], {}, True, 3.5)]
        for hf_config in broken:
            with suppress(LitGPTError):
                Config.from_hf(hf_config)


@pytest.mark.parametrize(
    ("name", "least"), [("n_layer", 1), ("intermediate_size", 1), ("n_shared_expert", 0), ("n_expert", 0)]
)
def test_counts_that_no_model_can_have_are_refused_by_name(name, least):
    with pytest.raises(LitGPTError, match=f"{name} is {least - 1}; it must be at least {least}"):
        Config(**{name: least - 1})
