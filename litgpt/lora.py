"""LoRA's public path; `litgpt.peft.lora` says what it is, `litgpt.peft.by_config` what LitGPT's names are here."""

from litgpt.peft.by_config import LoRAConfig as Config
from litgpt.peft.by_config import LoRAGPT as GPT
from litgpt.peft.by_config import lora_filter as lora_filter
from litgpt.peft.by_config import mark_only_lora_as_trainable as mark_only_lora_as_trainable
from litgpt.peft.by_config import merge_lora_weights as merge_lora_weights
from litgpt.peft.lora import LoRA as LoRA
from litgpt.peft.lora_layers import LoRALinear as LoRALinear

__all__ = ["GPT", "Config", "LoRA", "LoRALinear", "lora_filter", "mark_only_lora_as_trainable", "merge_lora_weights"]
