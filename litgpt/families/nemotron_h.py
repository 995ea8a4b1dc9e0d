"""Nemotron-H, Nemotron 3 and Mamba 2: blocks that are a state, attention, an MLP or experts alone.

https://arxiv.org/abs/2504.03624, https://arxiv.org/abs/2405.21060.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, UnsupportedError, quoted
from litgpt.families import deepseek, llama
from litgpt.families.base import Drop, Join, Rule, Same, spelled
from litgpt.families.hf_config import pop_activation, push_activation
from litgpt.families.mamba_hybrids import pop_limits, push_limits

THEIRS, OURS = "backbone.layers.{i}", "transformer.h.{i}"
ATTN, MLP = f"{OURS}.attn", f"{OURS}.mlp"
STATE = (
    Same(f"{THEIRS}.norm", f"{OURS}.norm_1"),
    *(Same(f"{THEIRS}.mixer.{name}", f"{ATTN}.{name}") for name in ("in_proj", "dt_bias", "A_log", "D")),
    Same(f"{THEIRS}.mixer.conv1d", f"{ATTN}.conv"),
    Same(f"{THEIRS}.mixer.norm.weight", f"{ATTN}.norm"),
    Same(f"{THEIRS}.mixer.out_proj", f"{ATTN}.proj"),
)
ATTENTION = (
    Same(f"{THEIRS}.norm", f"{OURS}.norm_1"),
    Join(tuple(f"{THEIRS}.mixer.{name}_proj" for name in "qkv"), f"{ATTN}.qkv"),
    Same(f"{THEIRS}.mixer.o_proj", f"{ATTN}.proj"),
)
DENSE = (
    Same(f"{THEIRS}.norm", f"{OURS}.norm_2"),
    Same(f"{THEIRS}.mixer.up_proj", f"{MLP}.fc"),
    Same(f"{THEIRS}.mixer.down_proj", f"{MLP}.proj"),
)
EXPERTS = (
    Same(f"{THEIRS}.norm", f"{OURS}.norm_2"),
    Same(f"{THEIRS}.mixer.gate", f"{MLP}.gate"),
    Same(f"{THEIRS}.mixer.experts.{{e}}.up_proj", f"{MLP}.experts.{{e}}.fc_1"),
    Same(f"{THEIRS}.mixer.experts.{{e}}.down_proj", f"{MLP}.experts.{{e}}.proj"),
    Same(f"{THEIRS}.mixer.shared_experts.up_proj", f"{MLP}.shared_experts.fc"),
    Same(f"{THEIRS}.mixer.shared_experts.down_proj", f"{MLP}.shared_experts.proj"),
    Same(f"{THEIRS}.mixer.fc1_latent_proj", f"{MLP}.latent_in"),
    Same(f"{THEIRS}.mixer.fc2_latent_proj", f"{MLP}.latent_out"),
)
WHOLE = (
    Same("backbone.embeddings", "transformer.wte"),
    Same("backbone.norm_f", "transformer.ln_f"),
    Same("lm_head", "lm_head"),
    Drop("mtp.*"),  # layers that predict the tokens after the next
)


def weights(config: Any) -> tuple[Rule, ...]:
    rules: list[Rule] = [*WHOLE]
    for layer in range(config.n_layer):
        if config.mixes(layer):
            own: tuple[Rule, ...] = STATE if config.linear(layer) else ATTENTION
        else:
            own = DENSE if config.dense(layer) or not config.n_expert else EXPERTS
        rules += (
            spelled(rule, layer, expert)
            for rule in own
            for expert in (range(config.n_expert) if "{e}" in str(rule) else (0,))
        )
    return tuple(rules)


KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
NAMES = {**KINDS, "mamba": "linear_attention", "attention": "full_attention"}
SIZES = (
    ("mamba_num_heads", "n_heads"),
    ("mamba_head_dim", "head_size"),
    ("n_groups", "n_groups"),
    ("ssm_state_size", "state_size"),
    ("conv_kernel", "kernel_size"),
    ("use_conv_bias", "conv_bias"),
    ("use_bias", "bias"),
)
"""`config.json` key ↔ key of `state_space`."""
UNUSED = """
    rope_parameters rope_theta rope_scaling partial_rotary_factor
    chunk_size time_step_max time_step_floor time_step_rank rescale_prenorm_residual residual_in_fp32 expand
    use_mamba_kernels mamba_ssm_cache_dtype num_logits_to_keep mamba_proj_bias moe_shared_expert_overlap sliding_window
    num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern attention_head_dim rms_norm_eps norm_eps
""".split()
"""Keys that change nothing: of training, of other layers, of positions that nothing here turns by."""


def pop_kinds(left: dict[str, Any]) -> list[str]:
    """Takes what each block is out of a `config.json`."""
    pattern, kinds = left.pop("hybrid_override_pattern", None), left.pop("layers_block_type", None)
    kinds = left.pop("layer_types", None) or kinds or pattern or ["linear_attention", "moe", "full_attention", "mlp"]
    named = [NAMES.get(kind, kind) for kind in kinds]
    if unknown := [kind for kind in named if kind not in KINDS.values()]:
        raise LitGPTError(f"config.json has blocks of the kind {quoted(unknown[0])}, which no layer here has.")
    return named


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    kinds = pop_kinds(left)
    for key in UNUSED:
        left.pop(key, None)
    if left.pop("mlp_bias", False):
        raise UnsupportedError("config.json has `mlp_bias`; MLPs without gates have no biases here.")
    left.pop("time_step_limit", None)  # which their class doesn't act on
    least = left.pop("time_step_min")
    state = {**{ours: left.pop(theirs) for theirs, ours in SIZES}, **({"least_time": least} if least else {})}
    recurrent, routed = [int(kind == "linear_attention") for kind in kinds], "moe" in kinds
    mixture = {
        **deepseek.pop_experts(left),
        **deepseek.pop_router(left),
        "shared_intermediate_size": left.pop("moe_shared_expert_intermediate_size"),
        "expert_embd": left.pop("moe_latent_size", None),
        "n_shared_expert": 1,
        "moe_layers": [int(kind == "moe") for kind in kinds],
        "mlp_class_name": "LLaMAMoE",
        "ungated_mlps": True,
        "first_k_dense_replace": None,
    }
    return {
        **llama.pop_attention(left),
        **pop_activation(left, "relu2", key="mlp_hidden_act"),
        "n_layer": len(kinds),
        "rope_layers": [0] * len(kinds),
        "mixer_layers": [int(kind.endswith("attention")) for kind in kinds],
        **({"state_space": state, "linear_attention_indices": recurrent} if any(recurrent) else {}),
        **(mixture if routed else {}),
    }


def kinds_of(config: Any) -> list[str]:
    """What each block is."""
    of_mlp = ["mlp" if config.dense(layer) or not config.n_expert else "moe" for layer in range(config.n_layer)]
    mixers = ["linear_attention" if config.linear(layer) else "full_attention" for layer in range(config.n_layer)]
    return [mixers[layer] if config.mixes(layer) else of_mlp[layer] for layer in range(config.n_layer)]


def to_hf(config: Any) -> dict[str, Any]:
    state = config.state_space or {}
    mixture = {
        **deepseek.push_experts(config),
        "norm_topk_prob": config.norm_topk_prob,
        "moe_shared_expert_intermediate_size": config.shared_intermediate_size,
        "moe_latent_size": config.expert_embd,
    }
    for key in ("mlp_layer_types", "first_k_dense_replace"):
        mixture.pop(key, None)
    return {
        **llama.push_attention(config),
        "mlp_hidden_act": push_activation(config),
        "layers_block_type": kinds_of(config),
        **{theirs: state[ours] for theirs, ours in SIZES if state},
        "time_step_min": state.get("least_time", 0.0),
        **(mixture if config.n_expert else {}),
    }


FIELDS = (
    *(pair for pair in llama.HF_FIELDS if pair[1] not in ("norm_eps", "n_layer")),
    ("layer_norm_epsilon", "norm_eps"),
)

HYBRID = replace(
    llama.FAMILY,
    name="nemotron_h",
    architectures=("NemotronHForCausalLM",),
    model_type="nemotron_h",
    base={**llama.BASE, "mlp_class_name": "GptNeoxMLP"},
    rows={},
    published={
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": dict(
            hidden_size=2688,
            num_attention_heads=32,
            num_key_value_heads=2,
            vocab_size=131072,
            max_position_embeddings=262144,
            hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            mamba_num_heads=64,
            n_routed_experts=128,
            num_experts_per_tok=6,
            intermediate_size=1856,
            moe_intermediate_size=1856,
            moe_shared_expert_intermediate_size=3712,
            routed_scaling_factor=2.5,
        )
    },
    hf_fields=FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    prefix="backbone.",
    renames=(("model.", "backbone."), *llama.FAMILY.renames),
    prompt_styles=(),
    hf_defaults={
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "time_step_min": 0.001,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
    },
    hf_constants={"mamba_hidden_act": ("silu", "swish")},
    hf_spellings={
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_dt_min": "time_step_min",
        "num_local_experts": "n_routed_experts",
    },
)


def mamba_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("time_step_min", *UNUSED):
        left.pop(key, None)
    names = {"mamba_num_heads": "num_heads", "mamba_head_dim": "head_dim", "ssm_state_size": "state_size"}
    sizes = {ours: left.pop(names.get(theirs, theirs)) for theirs, ours in SIZES}
    return {
        "state_space": {**sizes, **pop_limits(left)},
        "mixer_layers": [1] * left["num_hidden_layers"],
        "n_head": sizes["n_heads"],
        "head_size": sizes["head_size"],
        "intermediate_size": sizes["n_heads"] * sizes["head_size"],
        "block_size": left.pop("max_position_embeddings", None) or UNBOUNDED,
        "rope_layers": [0] * left["num_hidden_layers"],
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def mamba_to_hf(config: Any) -> dict[str, Any]:
    state = config.state_space
    names = {"mamba_num_heads": "num_heads", "mamba_head_dim": "head_dim", "ssm_state_size": "state_size"}
    return {
        **{names.get(theirs, theirs): state[ours] for theirs, ours in SIZES},
        "expand": state["n_heads"] * state["head_size"] // config.n_embd,
        "tie_word_embeddings": config.tie_embeddings,
        **push_limits(state),
    }


UNBOUNDED = 1048576
"""Tokens; nothing in a state says how many it takes."""

MAMBA_2 = replace(
    HYBRID,
    name="mamba2",
    architectures=("Mamba2ForCausalLM",),
    model_type="mamba2",
    published={"mistralai/Mamba-Codestral-7B-v0.1": dict(hidden_size=4096, num_hidden_layers=64, vocab_size=32768)},
    hf_fields=(
        *(pair for pair in FIELDS if pair[1] in ("n_embd", "padded_vocab_size", "norm_eps")),
        ("num_hidden_layers", "n_layer"),
    ),
    from_hf=mamba_from_hf,
    to_hf=mamba_to_hf,
    hf_defaults={
        "layer_norm_epsilon": 1e-5,
        "num_heads": 128,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
    },
    hf_constants={"hidden_act": ("silu", "swish")},
    hf_spellings={},
)
