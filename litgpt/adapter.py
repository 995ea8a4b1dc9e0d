"""LLaMA-Adapter's public path; `litgpt.peft.adapter` says what it is."""

from litgpt.peft.adapter import Adapter as Adapter
