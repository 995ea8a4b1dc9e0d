"""LoRA's public path; `litgpt.peft.lora` says what it is."""

from litgpt.peft.lora import LoRA as LoRA
