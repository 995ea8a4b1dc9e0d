"""Every model family, one file each, and how one is found: by model name, by architecture, or by structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litgpt.errors import LitGPTError, UnsupportedError, closest, escaped, quoted
from litgpt.families import (
    afmoe,
    apertus,
    arcee,
    bitnet,
    bloom,
    cohere,
    cohere_moe,
    cwm,
    deepseek,
    deepseek_sparse,
    dots,
    ernie,
    ernie_moe,
    exaone,
    falcon,
    falcon_h1,
    gemma,
    gemma3n,
    gemma4,
    glm,
    glm_moe,
    gpt2,
    gpt_neo,
    gpt_oss,
    gptj,
    granite,
    granite_moe,
    granite_swa,
    helium,
    hunyuan,
    hyperclovax,
    jais,
    kimi_linear,
    laguna,
    lfm,
    lfm3,
    llama,
    llama4,
    mamba_hybrids,
    mimo,
    minicpm,
    minimax,
    minimax_m3,
    ministral,
    mistral4,
    mixtral,
    muse_glimmer,
    nanochat,
    nemotron,
    nemotron_h,
    neox,
    olmo,
    olmoe,
    openai_gpt,
    opt,
    persimmon,
    phi,
    phimoe,
    qwen,
    qwen_moe,
    qwen_next,
    seed_oss,
    smollm3,
    stablelm,
    starcoder,
    vaultgemma,
)
from litgpt.families.base import Family
from litgpt.families.composites import is_composite, text_settings
from litgpt.families.gguf import GGUF
from litgpt.families.gguf_rows import ROWS
from litgpt.families.missing import missing

FAMILIES: tuple[Family, ...] = (
    neox.FAMILY,
    stablelm.FAMILY,
    falcon.FAMILY,
    llama.FAMILY,
    llama.MISTRAL,
    ministral.MINISTRAL,
    ministral.MINISTRAL_3,
    llama4.FAMILY,
    mixtral.FAMILY,
    olmo.OLMO,
    olmo.OLMO_2,
    olmo.OLMO_3,
    gemma.GEMMA,
    gemma.GEMMA_2,
    gemma.GEMMA_3,
    phi.PHI,
    phi.PHI_3,
    qwen.QWEN_2,
    qwen.QWEN_3,
    qwen.QWEN_3_MOE,
    qwen_next.NEXT,
    qwen_next.TEXT,
    smollm3.FAMILY,
    granite.FAMILY,
    glm.FAMILY,
    gpt_oss.FAMILY,
    deepseek.V2,
    deepseek.V3,
    gpt2.FAMILY,
    cohere.COHERE,
    cohere.COHERE_2,
    seed_oss.FAMILY,
    ernie.FAMILY,
    hunyuan.FAMILY,
    exaone.EXAONE_3,
    exaone.EXAONE_4,
    apertus.FAMILY,
    arcee.FAMILY,
    helium.FAMILY,
    nemotron.FAMILY,
    jais.FAMILY,
    starcoder.BIGCODE,
    starcoder.STARCODER_2,
    gptj.GPT_J,
    gptj.CODEGEN,
    gpt_neo.FAMILY,
    opt.OPT,
    opt.BIOGPT,
    opt.XGLM,
    bloom.BLOOM,
    bloom.MPT,
    nanochat.FAMILY,
    minicpm.MINICPM_3,
    minicpm.YOUTU,
    bitnet.FAMILY,
    vaultgemma.FAMILY,
    glm.EARLIER,
    granite_swa.FAMILY,
    hyperclovax.FAMILY,
    cwm.FAMILY,
    persimmon.FAMILY,
    openai_gpt.GPT,
    openai_gpt.CTRL,
    qwen_moe.FAMILY,
    qwen_next.TEXT_MOE,
    glm_moe.MOE,
    glm_moe.SOLAR,
    glm_moe.LITE,
    minimax.FAMILY,
    olmoe.OLMOE,
    olmoe.FLEX,
    granite_moe.MOE,
    granite_moe.SHARING,
    dots.DOTS,
    dots.EXAONE,
    ernie_moe.FAMILY,
    afmoe.FAMILY,
    mistral4.FAMILY,
    gemma4.FAMILY,
    gemma4.UNIFIED,
    phimoe.FAMILY,
    lfm.DENSE,
    lfm.MOE,
    mamba_hybrids.GRANITE,
    mamba_hybrids.BAMBA,
    deepseek_sparse.V32,
    deepseek_sparse.GLM,
    hunyuan.MOE,
    hunyuan.HY_3,
    granite_swa.MOE,
    cohere_moe.FAMILY,
    nemotron_h.HYBRID,
    nemotron_h.MAMBA_2,
    falcon_h1.FAMILY,
    kimi_linear.FAMILY,
    gemma3n.FAMILY,
    lfm3.FAMILY,
    laguna.FAMILY,
    laguna.MELLUM,
    mimo.FAMILY,
    minimax_m3.FAMILY,
    muse_glimmer.FAMILY,
)
BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}
BY_ARCHITECTURE: dict[str, Family] = {name: family for family in reversed(FAMILIES) for name in family.architectures}
BY_TYPE: dict[str, Family] = {  # the first that has a name: families made of it have the name of their parent too
    name: family for family in reversed(FAMILIES) for name in (*family.inside, family.model_type)
}

AS_GGUF: dict[str, GGUF] = {
    "neox": neox.AS_GGUF,
    "llama": llama.AS_GGUF,
    "mistral": llama.MISTRAL_AS_GGUF,
    "qwen2": qwen.AS_GGUF_2,
    "qwen3": qwen.AS_GGUF_3,
    "gemma": gemma.AS_GGUF,
    "gemma2": gemma.AS_GGUF_2,
    "gemma3": gemma.AS_GGUF_3,
    "olmo": olmo.AS_GGUF,
    "olmo2": olmo.AS_GGUF_2,
    "phi3": phi.AS_GGUF_3,
    "glm4": glm.AS_GGUF,
    "smollm3": smollm3.AS_GGUF,
    "mixtral": mixtral.AS_GGUF,
    "qwen3_moe": qwen.AS_GGUF_3_MOE,
    "stablelm": stablelm.AS_GGUF,
    "phi": phi.AS_GGUF,
    "gpt2": gpt2.AS_GGUF,
    "falcon": falcon.AS_GGUF,
    "granite": granite.AS_GGUF,
    "olmo3": olmo.AS_GGUF_3,
    "gpt_oss": gpt_oss.AS_GGUF,
    "ministral3": ministral.AS_GGUF,
    "deepseek_v2": deepseek.AS_GGUF_2,
    "deepseek_v3": deepseek.AS_GGUF_3,
    "llama4": llama4.AS_GGUF,
    **ROWS,
}
"""By family name: how llama.cpp's files hold it."""


def named_rows() -> dict[str, dict[str, Any]]:
    """All named sizes as complete `Config` keyword arguments, `name` and `hf_config` among them."""
    rows = {}
    for family in FAMILIES:
        for name, row in family.named_sizes().items():
            org_and_name = row["hf"].split("/", 1)
            kwargs = {**row, "name": name, "family_name": family.name}
            del kwargs["hf"]
            rows[name] = {**kwargs, "hf_config": dict(zip(("org", "name"), org_and_name, strict=True))}
    return rows


def by_structure(mlp_class_name: str, learned_positions: bool) -> Family:
    """The family of an unnamed model: GPT-2 learns its positions, GPT-NeoX has a plain MLP, Llama a gated one."""
    if learned_positions:
        return gpt2.FAMILY
    return neox.FAMILY if mlp_class_name == "GptNeoxMLP" else llama.FAMILY


def by_architecture(hf_config: Mapping[str, Any]) -> Family:
    """The family that reads this `config.json`.

    Raises:
        LitGPTError: The architecture is not known here.
    """
    architectures = hf_config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise LitGPTError(f"config.json has `architectures`: {quoted(architectures)}, which is no list of names.")
    if is_composite(hf_config):
        kind = str(text_settings(hf_config)["model_type"])
        if kind in BY_TYPE:
            return BY_TYPE[kind]
        architecture = f"{escaped(', '.join(architectures))} around a {escaped(kind)}"
        if (need := missing(kind)) is not None:
            raise UnsupportedError(f"{architecture} needs {need}, which no layer here has.")
        raise UnsupportedError(f"No model family here reads {architecture}.{closest(kind, BY_TYPE)}")
    model_type = str(hf_config.get("model_type"))
    kin = BY_TYPE.get(model_type)
    for name in architectures:
        if name in BY_ARCHITECTURE:  # of two that share a class, the model type tells which
            return kin if kin and name in kin.architectures else BY_ARCHITECTURE[name]
    if not architectures and model_type in BY_TYPE:
        return BY_TYPE[model_type]
    what = escaped(", ".join(architectures)) or f"model_type {quoted(model_type)}"
    need = next((need for name in (*architectures, model_type) if (need := missing(name))), None)
    if need is not None:
        raise UnsupportedError(f"{what} needs {need}, which no layer here has.")
    raise UnsupportedError(f"No model family here reads {what}.{closest(what, BY_ARCHITECTURE)}")
