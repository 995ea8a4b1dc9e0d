"""What known architectures need that no layer here has, for the sentence that refuses them."""

from __future__ import annotations

import re

SPARSE = "attention to a few tokens that an indexer chooses"
SELECTIVE = "Mamba's selective scan, channel by channel"
NEEDS: tuple[tuple[str, str], ...] = (
    (r"Glm5", SPARSE),
    (r"MistralLarge4", f"rotary positions whose speeds are learned, in some layers of latent attention, and {SPARSE}"),
    (r"Deepseek_?V4", f"keys of many tokens compressed into one, {SPARSE}, and hyper-connections"),
    (r"AXK1", "a norm of what experts give, in mixtures alone"),
    (r"Kolibri1", "a router whose bias counts before the sigmoid"),
    (r"OlmoHybrid", "norms before linear attention and behind the other kind"),
    (r"Step3p", "bounds of gates that differ by layer"),
    (r"FalconMamba|MambaForCausalLM|Jamba", SELECTIVE),
    (r"Zamba", "blocks that several layers share"),
    (r"MiniMaxForCausalLM|MiniMaxText01|Bailing", "lightning attention"),
    (r"Qwen4Exp|Inkling|HYV4", "embeddings of n-grams"),
    (r"RecurrentGemma", "a gated linear recurrence (RG-LRU)"),
    (r"Rwkv", "RWKV's time mixing"),
    (r"xLSTM", "an LSTM with matrix memory"),
    (r"DiffLlama", "the difference of two attentions"),
    (r"JetMoe", "experts in the place of attention heads"),
    (r"LongcatFlash", "two attentions a layer, and experts that do nothing"),
    (r"Mllama|Idefics(For|$)|Flamingo", "attention to pictures beside attention to text"),
    (r"PaliGemma|BlockDiffusion|PrefixLM", "attention to later tokens"),
    (r"T5|Bart|Pegasus|Marian|Whisper|ProphetNet|EncoderDecoder|Seq2Seq", "an encoder beside the decoder"),
    (r"For(MaskedLM|\w+Classification|QuestionAnswering)$|^\w*Bert", "a head for another task"),
)
"""Pattern of an architecture's name, and what it needs."""


def missing(architecture: str) -> str | None:
    """What an architecture needs that no layer here has, if that is known."""
    return next((need for pattern, need in NEEDS if re.search(pattern, architecture)), None)
