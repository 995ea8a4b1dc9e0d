"""Weight tables read in both directions without loss, for every named model."""

from __future__ import annotations

import pytest
import torch

from litgpt.checkpoint.weights import WeightTable, lazy
from litgpt.config import Config, name_to_config
from litgpt.errors import LitGPTError
from litgpt.model import GPT


def shrunk(name: str) -> Config:
    """The named model with the same parts, each of them small."""
    row = Config.from_name(name)
    sizes = dict(n_layer=2, n_embd=16, n_head=4, head_size=4, intermediate_size=24, padded_vocab_size=32, block_size=16)
    sizes["n_query_groups"] = 1 if row.n_query_groups == 1 else 4 if row.n_query_groups == row.n_head else 2
    if row.n_expert:
        sizes.update(n_expert=4, n_expert_per_token=2)
    if row.moe_intermediate_size:
        sizes["moe_intermediate_size"] = 8
    if row.n_expert_groups:
        sizes.update(n_expert_groups=2, n_topk_groups=1)
    if row.first_k_dense_replace:
        sizes["first_k_dense_replace"] = 1
    if row.latent_attention:
        small = dict(kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=3, v_head_dim=5)
        sizes["latent_attention"] = {"q_lora_rank": row.latent_attention["q_lora_rank"] and 7, **small}
    if row.linear_attention:
        small = dict(n_key_heads=2, n_value_heads=6, key_size=3, value_size=5, kernel_size=3)
        sizes.update(n_layer=4, linear_attention=small)
    if row.shared_kv_layers:
        sizes.update(n_layer=10, shared_kv_layers=5)
    return Config.from_name(name, **sizes)


@pytest.mark.parametrize("name", list(name_to_config))
def test_there_and_back_is_the_identity(name):
    config = shrunk(name)
    with torch.device("meta"):
        shapes = GPT(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    ours = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in shapes.items()}
    if config.tie_embeddings:
        ours["lm_head.weight"] = ours["transformer.wte.weight"]
    table = WeightTable(config)
    theirs = dict(table.export_from(lazy(ours)))
    imported = table.import_from(lazy(theirs), shapes)
    again = dict(imported)
    expected = {key: tensor for key, tensor in ours.items() if not (config.tie_embeddings and key == "lm_head.weight")}
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[key], expected[key]) for key in again)
    for key, tensor in expected.items():  # as a rank of three reads the second and the third part of them
        if tensor.dim() == 0:
            continue
        start = -(-len(tensor) // 3)
        assert torch.equal(imported.rows(key, start, len(tensor) - start), tensor[start:])
    if config.tie_embeddings:
        again["lm_head.weight"] = again["transformer.wte.weight"]
    back = dict(table.export_from(lazy(again)))
    assert back.keys() == theirs.keys() and all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_a_tensor_of_ours_without_a_counterpart_is_named():
    config = shrunk("pythia-14m")
    with pytest.raises(LitGPTError, match=r"transformer\.h\.0\.mlp\.fc_2\.weight"):
        WeightTable(config).export_from(lazy({"transformer.h.0.mlp.fc_2.weight": torch.ones(1)}))


def test_layers_that_predict_further_ahead_are_left_alone():
    config = shrunk("DeepSeek-V3")
    with torch.device("meta"):
        shapes = GPT(config).state_dict()
    table = WeightTable(config)
    theirs = dict(table.export_from(lazy({key: torch.ones(tensor.shape) for key, tensor in shapes.items()})))
    theirs["model.layers.2.eh_proj.weight"] = torch.ones(1)
    assert set(table.import_from(lazy(theirs), shapes).names) == set(shapes)
