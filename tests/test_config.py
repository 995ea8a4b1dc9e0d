"""`Config` means what LitGPT's does: same names, same fields, same files."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from litgpt.config import Config, configs, name_to_config
from litgpt.errors import LitGPTError
from litgpt.model import GPT

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = json.loads((GOLDEN / "configs.json").read_text())
STATE_DICTS = json.loads((GOLDEN / "state_dict_one_layer.json").read_text())
LITGPT_NAMES = sorted(set(CONFIGS["configs"]) & set(name_to_config))


def test_known_names_are_unique_and_listed_once():
    assert len(configs) == len(name_to_config) == len({row["name"] for row in configs})


@pytest.mark.parametrize("name", LITGPT_NAMES)
def test_every_field_equals_litgpts(name):
    expected = {**CONFIGS["common"], **CONFIGS["configs"][name], "name": name}
    org, hub_name = expected.pop("hf").split("/")
    expected["hf_config"] = {"org": org, "name": hub_name}
    ours = asdict(Config.from_name(name))
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.parametrize("group", STATE_DICTS, ids=lambda group: next(iter(group["parameters"])))
def test_state_dict_names_and_sizes_equal_litgpts(group):
    for name in group["parameters"].keys() & name_to_config.keys():
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


def test_an_unknown_activation_is_refused():
    hf_config = Config.from_name("SmolLM2-135M").family.write_hf(Config.from_name("SmolLM2-135M"))
    with pytest.raises(LitGPTError, match="hidden_act"):
        Config.from_hf({**hf_config, "hidden_act": "relu2"})


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
