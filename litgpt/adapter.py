"""LLaMA-Adapter's public path; `litgpt.peft.adapter` says what it is, `litgpt.peft.by_config` LitGPT's names."""

from litgpt.peft.adapter import Adapter as Adapter
from litgpt.peft.by_config import AdapterConfig as Config
from litgpt.peft.by_config import AdapterGPT as GPT
from litgpt.peft.by_config import adapter_filter as adapter_filter
from litgpt.peft.by_config import mark_only_adapter_as_trainable as mark_only_adapter_as_trainable

__all__ = ["GPT", "Adapter", "Config", "adapter_filter", "mark_only_adapter_as_trainable"]
