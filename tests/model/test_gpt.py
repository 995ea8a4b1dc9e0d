"""What `GPT` promises beyond the parity tests: LitGPT's calls, limits, tying, precise refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import attention_mask
from litgpt.model.cache import KVCache
from litgpt.model.norm import RMSNorm

TINY = dict(n_layer=2, n_embd=32, n_head=4, intermediate_size=48, padded_vocab_size=96, block_size=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT.from_name("pythia-14m", **TINY).eval()


@torch.inference_mode()
def test_litgpts_cached_forward_equals_the_uncached(model):
    idx = torch.randint(0, 96, (2, 10))
    model.set_kv_cache(batch_size=2, max_seq_length=16)
    prompt = model(idx[:, :6], input_pos=torch.arange(6))
    steps = [model(idx[:, t : t + 1], input_pos=torch.tensor([t]), input_pos_maxp1=t + 1) for t in range(6, 10)]
    model.clear_kv_cache()
    torch.testing.assert_close(torch.cat([prompt, *steps], dim=1), model(idx), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_head_in_chunks_gives_the_same_logits(model):
    idx = torch.randint(0, 96, (1, 10))
    chunks = model(idx, lm_head_chunk_size=4)
    assert [chunk.size(1) for chunk in chunks] == [4, 4, 2]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(idx))


def test_input_pos_without_a_cache_is_told(model):
    with pytest.raises(LitGPTError, match="set_kv_cache"):
        model(torch.zeros(1, 1, dtype=torch.long), input_pos=torch.tensor([0]))


def test_a_sequence_beyond_the_context_is_told(model):
    with pytest.raises(LitGPTError, match=r"33 tokens.*32 tokens"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_max_seq_length_has_its_bounds(model):
    with pytest.raises(LitGPTError, match="context is 32"):
        model.max_seq_length = 33


def test_a_tied_head_is_the_embedding_and_counts_once():
    tied, untied = (GPT.from_name("pythia-14m", **TINY, tie_embeddings=tie) for tie in (True, False))
    assert tied.tied and not untied.tied
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 96 * 32


def test_a_stretching_of_positions_that_is_not_known_is_refused():
    model = GPT.from_name("Llama-3.2-1B", **TINY, n_query_groups=2, rope_adjustments={"factor": 2.0, "surprise": 1})
    with pytest.raises(LitGPTError, match="surprise"):
        model(torch.zeros(1, 3, dtype=torch.long))


def test_the_rope_table_grows_with_use_not_with_the_context():
    model = GPT.from_name("Llama-3.2-1B", **{**TINY, "block_size": 131072}, n_query_groups=2)
    model(torch.zeros(1, 3, dtype=torch.long))
    assert model.ropes[0].cos.size(0) == 64


def test_rms_norm_of_half_precision_is_computed_in_float32():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # its square overflows float16
    assert torch.allclose(RMSNorm(64, eps=1e-5).half()(x), torch.ones(1, 64, dtype=torch.float16))


def test_a_windowed_mask_sees_itself_and_the_tokens_before():
    mask = attention_mask(torch.arange(4), end=4, window=2)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_the_size_of_a_cache_is_known_before_it_is_made():
    config = Config.from_name("pythia-14m", **TINY)
    cache = KVCache(config, slots=3, length=16, dtype=torch.float16)
    assert sum(t.nbytes for t in (*cache.keys, *cache.values)) == KVCache.nbytes(config, 3, 16, torch.float16)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_room_in_a_cache_costs_no_memory_before_it_is_used():
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    config = Config.from_name("pythia-14m", **{**TINY, "block_size": 65536})
    before = anonymous()
    cache = KVCache(config, slots=16, length=65536, dtype=torch.float32)
    assert KVCache.nbytes(config, 16, 65536, torch.float32) > 500e6
    assert anonymous() - before < 50e6
    assert not cache.keys[1][15, :, -1].any()
