"""A model together with what it takes to talk to it: its tokenizer, its prompt style, and what ends its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from litgpt.chat_template import Message
from litgpt.checkpoint.finetuned import Finetuned, find_finetuned
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.errors import LitGPTError
from litgpt.generate.engine import Engine
from litgpt.generate.placement import longest_fit
from litgpt.generate.sampling import Sampling
from litgpt.generate.text import Reply, check_stop_strings
from litgpt.model import GPT
from litgpt.prompts import ChatTemplate, PromptStyle, prompt_style_for
from litgpt.runtime import default_precision, parameter_dtype, pick_device
from litgpt.tokenizer import Tokenizer

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions whose weights stay float32 and what is computed in instead."""


@dataclass
class Speaker:
    """Everything that `generate`, `chat`, `LLM` and `serve` need of a checkpoint."""

    model: GPT
    tokenizer: Tokenizer
    style: PromptStyle
    dtype: torch.dtype | None = None
    """What is computed in; None: the weights' own."""

    @classmethod
    def load(
        cls,
        checkpoint_dir: str | Path,
        device: str = "auto",
        precision: str | None = None,
        quantize: str | None = None,
    ) -> Speaker:
        """Opens a checkpoint folder, LitGPT's or Hugging Face's, or one that holds what a method learned.

        Args:
            checkpoint_dir: The folder, or its name under `checkpoints/`.
            device: `auto`, `cpu`, `cuda`, `mps`.
            precision: `32-true`, `bf16-true` and so on; None: 16 bits where the device has them.
            quantize: Not built yet, so anything but None is refused.

        Raises:
            LitGPTError: The folder, the device or the precision can't be used.
        """
        source = find_finetuned(checkpoint_dir) or find_checkpoint(checkpoint_dir)
        return cls.open(source, device, precision, quantize)

    @classmethod
    def open(
        cls,
        source: Checkpoint | Finetuned,
        device: str = "auto",
        precision: str | None = None,
        quantize: str | None = None,
    ) -> Speaker:
        """As `load`, from what was found."""
        place = pick_device(device)
        precision = precision or default_precision(training=False, device=place)
        dtype = parameter_dtype(precision)
        refuse_quantization(quantize, place)
        if isinstance(source, Finetuned):
            tokenizer, style = Tokenizer(source.base.dir), source.prompt_style()
            model = source.load_model(place, dtype)
        else:
            tokenizer, style = Tokenizer(source.dir), prompt_style_for(source.dir, source.config)
            model = load_model(source, place, dtype)
        return cls(model, tokenizer, style, MIXED.get(precision, dtype))

    @cached_property
    def stops(self) -> list[int | list[int]]:
        """What ends an answer: the tokenizer's end tokens and the style's own."""
        # A style with a `stop_tokens` of its own may know no more than LitGPT's: `[[None]]` where there is no EOS.
        own = [stop for stop in self.style.stop_tokens(self.tokenizer) if None not in stop]
        return [*self.tokenizer.stop_ids, *own]

    @property
    def multi_turn(self) -> bool:
        """Whether the style writes conversations; one that is a function of a single prompt doesn't."""
        return isinstance(self.style, ChatTemplate) or bool(self.style.user)

    def encode(self, prompt: str, sys_prompt: str | None = None) -> list[int]:
        """The token ids of a prompt in the model's style; see `encode_sample`."""
        return self.encode_sample({"instruction": prompt, "sys_prompt": sys_prompt})

    def encode_sample(self, sample: Mapping[str, Any]) -> list[int]:
        """The token ids of an instruction sample in the model's style.

        Raises:
            LitGPTError: There is a system prompt, and the style has no place for one.
        """
        text = self.style.apply_sample(sample)
        if sample.get("sys_prompt") and text == self.style.apply_sample({**sample, "sys_prompt": None}):
            raise LitGPTError(
                f"The prompt style {type(self.style).__name__} has no place for a system prompt; leave it out."
            )
        return self.encode_text(text)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the next answer begins.

        Raises:
            LitGPTError: The style cannot write this conversation.
        """
        return self.encode_text(self.style.apply_messages(messages, add_generation_prompt=True))

    def encode_text(self, text: str) -> list[int]:
        """The token ids of a prompt that is in the model's style already."""
        return self.tokenizer.encode_ids(text, bos=False if self.style.adds_bos else None)

    def engine(self, slots: int = 1, length: int | None = None) -> Engine:
        """An engine for this model.

        Args:
            slots: Requests that run at the same time.
            length: Tokens a sequence may have, cut to the model's context; None: the context, or what fits into memory.
        """
        if length is None:
            weight = self.model.lm_head.weight
            length = longest_fit(self.model.config, slots, self.dtype or weight.dtype, weight.device)
        return Engine(self.model, slots, min(length, self.model.max_seq_length), self.dtype)

    def reply(
        self,
        engine: Engine,
        prompt: list[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        watch: Callable[[], None] | None = None,
    ) -> Reply:
        """Puts a prompt in line and returns its answer to come, as text."""
        check_stop_strings(stop_strings)  # before there is a request to clean up
        request = engine.submit(prompt, sampling, self.stops, max_new_tokens, watch)
        return Reply(request, self.tokenizer.stream(), stop_strings)


def refuse_quantization(quantize: str | None, device: torch.device) -> None:
    """Raises a LitGPTError that says what stands in the way of `--quantize`."""
    if quantize is None:
        return
    if device.type != "cuda":
        raise LitGPTError(f"--quantize {quantize} needs a CUDA GPU, and this runs on {device.type}; leave it out.")
    if find_spec("bitsandbytes") is None:
        raise LitGPTError(f"--quantize {quantize} needs bitsandbytes; install it with `pip install bitsandbytes`.")
    raise LitGPTError(f"--quantize {quantize} is not built yet; leave it out.")


def refuse_compilation(compile: bool) -> None:
    """Raises a LitGPTError for `--compile true`."""
    if compile:
        raise LitGPTError("--compile true is not built yet for generation; leave it out.")
