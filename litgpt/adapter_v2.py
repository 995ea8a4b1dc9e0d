"""LLaMA-Adapter V2's public path; `litgpt.peft.adapter_v2` says what it is, `litgpt.peft.by_config` what LitGPT's
names are."""

from litgpt.peft.adapter_v2 import AdaptedLinear as AdapterV2Linear
from litgpt.peft.adapter_v2 import AdapterV2 as AdapterV2
from litgpt.peft.by_config import AdapterV2Config as Config
from litgpt.peft.by_config import AdapterV2GPT as GPT
from litgpt.peft.by_config import adapter_v2_filter as adapter_filter
from litgpt.peft.by_config import mark_only_adapter_v2_as_trainable as mark_only_adapter_v2_as_trainable

__all__ = ["GPT", "AdapterV2", "AdapterV2Linear", "Config", "adapter_filter", "mark_only_adapter_v2_as_trainable"]
