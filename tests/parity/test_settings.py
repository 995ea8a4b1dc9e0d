"""Any setting of any family that transformers takes is computed as it does, or refused in a sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.checkpoint.reader import load_model
from litgpt.errors import LitGPTError
from tests.tiny import BY_LENGTH, CASES, LLAMA3_ROPE, PARTIAL, YARN, hf_model

TOKENS = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(4))
ACTIVATIONS = ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "relu6", "mish"]
ACTIVATIONS += ["sigmoid", "tanh", "leaky_relu", "hardswish", "gelu_10", "linear", "laplace", "gelu_fast"]
ROPES: list[Any] = [LLAMA3_ROPE, PARTIAL, YARN, {**YARN, "truncate": False}, {**YARN, "attention_factor": 1.3}]
ROPES += [dict(rope_type=kind, rope_theta=10000.0, factor=2.0) for kind in ("linear", "dynamic")]
ROPES += [dict(rope_type="default", rope_theta=500.0), {**PARTIAL, "partial_rotary_factor": 0.5}]
SWITCHES = """
    attention_bias mlp_bias qkv_bias use_bias use_qkv_bias qk_layernorm use_qk_norm tie_word_embeddings alibi bias
    parallel_attn new_decoder_architecture multi_query use_parallel_residual norm_topk_prob lm_head_bias
    use_sliding_window scale_attn_weights enable_bias do_layer_norm_before attn_temperature_tuning rope_interleave
    use_conv_bias conv_bias mamba_conv_bias mamba_proj_bias mamba_rms_norm mamba_norm_before_gate projectors_bias
    altup_correct_scale use_double_wide_mlp attention_k_eq_v enable_moe_fp32_combine use_post_norm attention_out_bias
    scale_embedding enable_moe_block mup_enabled moe_renormalize use_sandwich_norm use_attention_gate
""".split()
NUMBERS: dict[str, list[Any]] = {
    "num_key_value_heads": [1, 2, 4],
    "head_dim": [4, 8, 16],
    "sliding_window": [3, None],
    "num_experts_per_tok": [1, 2],
    "rms_norm_eps": [1e-3],
    "layer_norm_eps": [1e-3],
    "num_hidden_layers": [1, 2],
    "final_logit_softcapping": [None, 2.0],
    "attn_logit_softcapping": [None, 2.0],
    "clip_qkv": [0.5, None],
    "logit_scale": [0.25, 1.0],
    "routed_scaling_factor": [1.0, 2.0],
    "first_k_dense_replace": [0, 2],
    "n_group": [1, 2],
    "topk_group": [1],
    "moe_latent_size": [None, 16],
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "activation_function": ACTIVATIONS,
    "mlp_hidden_act": ACTIVATIONS,
    "rope_parameters": ROPES,
    "expert_selection_fn": ["softmax", "sigmoid"],
    "shared_expert_combination_strategy": ["sum", "average"],
    "key_multiplier": [0.5],
    "max_position_embeddings": [32],
    "index_topk": [5, 64],
    "index_n_heads": [1, 4],
    "index_head_dim": [8, 16],
    "index_block_size": [1, 8, 128],
    "index_topk_blocks": [1, 2, 40],
    "index_local_blocks": [0, 2],
    "swiglu_limit": [0.1, 100.0],
    "gating": [True, False, "per-head", "per-element"],
    "num_attention_heads_per_layer": [[4, 4], [2, 4], [8, 8]],
    "v_head_dim": [4, 12],
    "attention_value_scale": [None, 1.0, 0.5],
    "mlp_layer_types": [["dense", "dense"], ["sparse", "sparse"], ["sparse", "dense"]],
    "conv_L_cache": [2, 7],
    "partial_rotary_factor": [0.5],
    "q_lora_rank": [None, 12],
}
NUMBERS |= {name: [False, True] for name in SWITCHES}


def compare(case: str, changes: dict[str, Any]) -> str:
    """`equal`, `refused`, or `theirs` where transformers itself doesn't take it; else raises."""
    name, said = CASES[case]
    CASES["varied"] = name, {**said, **changes}
    try:
        model = hf_model("varied")
        with torch.inference_mode():
            theirs = model(TOKENS, use_cache=False).logits
        if not theirs.isfinite().all():
            return "theirs"
    except Exception:  # of whatever kind they raise
        return "theirs"
    finally:
        del CASES["varied"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            theirs = type(model).from_pretrained(folder, dtype=torch.float32)(TOKENS, use_cache=False).logits
        except Exception:
            return "theirs"
        try:
            ours = load_model(Path(folder), dtype=torch.float32)
            with torch.inference_mode():
                logits = ours(TOKENS)[..., : theirs.size(-1)]
        except LitGPTError as refusal:
            assert len(str(refusal)) < 400
            return "refused"
    difference = ((logits - theirs).norm() / theirs.norm()).item()
    assert difference < 1e-4, f"{case} with {changes}: {difference:.1e}"
    return "equal"


def choices(case: str) -> list[tuple[str, Any]]:
    """One setting of a case and another value for it."""
    import transformers

    name, said = CASES[case]
    known = getattr(transformers, name)(**said).to_dict()
    return [(key, value) for key, values in NUMBERS.items() if key in known for value in values if known[key] != value]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_setting_is_computed_or_refused(data):
    case = data.draw(st.sampled_from([case for case in CASES if case not in BY_LENGTH]))
    compare(case, dict(data.draw(st.lists(st.sampled_from(choices(case)), min_size=1, max_size=2))))


@pytest.mark.parametrize("case", ["opt", "nanochat", "arcee"])
def test_another_activation_takes_the_place_of_the_familys_own(case):
    key = "activation_function" if case == "opt" else "hidden_act"
    assert compare(case, {key: "gelu"}) == "equal"


def test_an_indexer_narrower_than_what_rotates_is_refused():
    assert compare("minimax-m3", {"head_dim": 12}) == "refused"
