"""LLaMA-Adapter V2's public path; `litgpt.peft.adapter_v2` says what it is."""

from litgpt.peft.adapter_v2 import AdapterV2 as AdapterV2
