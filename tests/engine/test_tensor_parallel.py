"""Two gloo ranks that share a model, against one process that has it whole."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.engine.tensor_parallel import Ranks, check_divides, split_over_ranks
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from tests.engine.oracle import prompts

SIZE = dict(n_layer=2, vocab_size=95, padded_vocab_size=95, block_size=64)
"""A vocabulary that two ranks don't divide."""
MODELS: dict[str, dict[str, Any]] = {
    "pythia-14m": dict(n_embd=32, n_head=4, intermediate_size=48),
    "Llama-3.2-1B": dict(n_embd=32, n_head=4, n_query_groups=2, head_size=8, intermediate_size=49),
    "Gemma-2-2b": dict(n_embd=32, n_head=4, n_query_groups=2, head_size=8, intermediate_size=48),
    "OLMo-2-1124-7B": dict(n_embd=32, n_head=4, n_query_groups=4, intermediate_size=48),
    "Qwen3-0.6B": dict(n_embd=32, n_head=4, n_query_groups=2, head_size=8, intermediate_size=48),
    "Mixtral-8x7B-v0.1": dict(n_embd=32, n_head=4, n_query_groups=2, intermediate_size=48, n_expert=4),
    "gpt-oss-20b": dict(
        n_embd=32, n_head=4, n_query_groups=2, head_size=8, moe_intermediate_size=24, intermediate_size=24, n_expert=4,
        n_expert_per_token=2,
    ),
    "DeepSeek-V3": dict(
        n_embd=32, n_head=4, n_query_groups=4, intermediate_size=48, moe_intermediate_size=24, n_expert=8,
        n_expert_per_token=2, n_expert_groups=2, n_topk_groups=1, first_k_dense_replace=1,
        latent_attention=dict(q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6),
    ),
    "Llama-3.2-1B with gates": dict(
        n_embd=32, n_head=4, n_query_groups=2, head_size=8, intermediate_size=48, head_gates=True, value_size=6,
        heads_by_layer=[4, 8], attention_sinks=True, sliding_window_size=7, sliding_window_indices=[1, 0],
        sinks_in_windows=True,
    ),
    "Llama-3.2-1B in blocks": dict(
        n_embd=32, n_head=4, n_query_groups=2, head_size=8, intermediate_size=48, swiglu_limit=0.8, norm_qk=True,
        sparse_attention=dict(n_heads=2, head_size=9, top_k=2, block_size=3, local_blocks=1), sparse_layers=[0, 1],
    ),
    "phi-2": dict(n_embd=32, n_head=4, intermediate_size=48),
    "gpt2": dict(n_embd=32, n_head=4, intermediate_size=48),
}  # fmt: skip


def tiny(name: str) -> GPT:
    torch.manual_seed(3)
    overrides, name = {**MODELS[name], **SIZE}, name.partition(" ")[0]
    known = Config.from_name(name)
    for field in ("rope_layers", "sliding_window_indices", "rope_indices"):
        if getattr(known, field):
            overrides[field] = getattr(known, field)[: SIZE["n_layer"]]
    model = GPT(Config.from_name(name, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def heard(model: GPT) -> dict[str, Any]:
    """What a model says: logits, and two greedy answers of an engine."""
    engine = Engine(model, slots=2)
    requests = [engine.submit(prompt, Sampling(temperature=0), max_new_tokens=12) for prompt in prompts(9, 4)]
    with torch.no_grad():
        return dict(logits=model(torch.arange(20)[None]), tokens=[request.result() for request in requests])


def rank(number: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(number))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {}
    for name in MODELS:
        model = tiny(name)
        whole = sum(parameter.numel() for parameter in model.transformer.h.parameters())
        split_over_ranks(model)
        found[name] = heard(model)
        found[name]["share"] = sum(parameter.numel() for parameter in model.transformer.h.parameters()) / whole
        found[name]["cache"] = Engine(model).cache_nbytes
        found[name]["config"] = asdict(model.config)
    torch.save(found, folder / f"{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank heard of every model."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(rank, args=(port, folder), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_say_what_one_says(ranks, name):
    alone = heard(tiny(name))
    for found in ranks:
        torch.testing.assert_close(found[name]["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
        assert found[name]["tokens"] == alone["tokens"]


@pytest.mark.parametrize("name", MODELS)
def test_each_rank_holds_its_share(ranks, name):
    assert ranks[0][name]["share"] < (0.75 if name == "DeepSeek-V3" else 0.55)
    latent = tiny(name).config.latent_attention is not None  # every head needs the whole of a latent
    if tiny(name).config.sparse_attention is not None:  # and every rank what an indexer scores by
        assert ranks[0][name]["cache"] < Engine(tiny(name)).cache_nbytes * 0.6
        return
    assert ranks[0][name]["cache"] == Engine(tiny(name)).cache_nbytes // (1 if latent else 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_config_stays_as_it_is(ranks, name):
    assert all(found[name]["config"] == asdict(tiny(name).config) for found in ranks)


@pytest.mark.parametrize("ranks", [3, 4])
def test_ranks_that_do_not_divide_the_key_value_groups_are_refused(ranks):
    with pytest.raises(LitGPTError, match=f"{ranks} devices can't share 2 key-value groups"):
        check_divides(tiny("Llama-3.2-1B"), ranks)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, 5, 6, 8])
def test_rows_are_shared_as_a_sharded_dtensor_shares_them(size, count):
    whole = torch.arange(size * 3).view(size, 3)
    chunks = [*whole.chunk(count), *[whole[:0]] * count]  # what `Shard` calls
    for number in range(count):
        assert torch.equal(Ranks(number, count).part(whole), chunks[number])
