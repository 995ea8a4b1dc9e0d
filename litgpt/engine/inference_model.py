"""A model together with what it takes to talk to it: its tokenizer, its prompt style, and what ends its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.finetuned import Finetuned, find_finetuned
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.engine.detokenizer import TextStream, stop_strings
from litgpt.engine.engine import Engine
from litgpt.engine.memory import longest_fit
from litgpt.engine.placement import Placement, Strategy
from litgpt.engine.sampling import Sampling
from litgpt.engine.speculative import SpeculativeEngine
from litgpt.errors import LitGPTError, warn_once
from litgpt.model import GPT
from litgpt.prompts import ChatTemplate, Default, PromptStyle, prompt_style_for
from litgpt.prompts.base import Message, join_text, protected_message
from litgpt.quantize.kernels import saves_time
from litgpt.runtime import check_compiler
from litgpt.tokenizer import Tokenizer

MAX_CONCURRENT_REQUESTS = 16
"""Answers that are generated together where one call asks for many: samples, or prompts of a list or a file."""
PREFILL_CHUNK = 512
"""Prompt tokens that an engine processes between two steps of the running requests."""


@dataclass
class InferenceModel:
    """Everything that `generate`, `chat`, `LLM` and `serve` need of a checkpoint."""

    model: GPT
    tokenizer: Tokenizer
    style: PromptStyle
    dtype: torch.dtype | None = None
    """What is computed in; None: the weights' own."""
    compile: bool = False
    """Whether its engines compile their step."""
    draft: GPT | None = None
    """A smaller model of the same tokenizer that drafts for this one; see `SpeculativeEngine`."""
    speculative_k: int = 3
    """Tokens that are drafted at a time."""
    deterministic: bool = False
    """Whether its engines answer the same whatever else runs, to the bit; see `Engine`."""

    @classmethod
    def load(
        cls,
        checkpoint_dir: str | Path | Checkpoint | Finetuned,
        device: str = "auto",
        precision: str | None = None,
        quantize: str | None = None,
        compile: bool = False,
        strategy: Strategy | None = None,
    ) -> InferenceModel:
        """Opens a checkpoint folder, LitGPT's or Hugging Face's, or one that holds what a method learned.

        Args:
            checkpoint_dir: The folder, or its name under `checkpoints/`; or what `find_source` found there.
            device: `auto`, `cpu`, `cuda`, `mps`.
            precision: `32-true`, `bf16-true` and so on; None: 16 bits where the device has them.
            quantize: One of `litgpt.quantize.MODES`: keep linear layers in few bits.
            compile: Let its engines compile their step.
            strategy: How all GPUs that there are, or all processes, share the model; None: it is on one device.

        Raises:
            LitGPTError: The folder, the device, the precision or the quantization can't be used, or nothing compiles.
        """
        source = find_source(checkpoint_dir) if isinstance(checkpoint_dir, str | Path) else checkpoint_dir
        placement = Placement.of(device, precision, quantize, strategy)
        if compile:
            if not placement.alone:
                raise LitGPTError("--compile true is for one device; leave it out.")
            check_compiler(placement.devices[0])
        folder, style = prompting_of(source)
        tokenizer = Tokenizer(folder)
        keep_bits = not compile and saves_time(placement.devices[0], placement.dtype)
        model = placement.open(source, keep_bits).requires_grad_(False)
        return cls(model, tokenizer, style, placement.compute_dtype, compile)

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
        """The token ids of an instruction sample in the model's style; warns of a system prompt that it has no place
        for."""
        if not isinstance(self.style, Default):  # there the prompt is the whole text, special tokens and all
            protect = self.tokenizer.protect
            sample = {key: protect(value) if isinstance(value, str) else value for key, value in sample.items()}
        text = self.style.apply_sample(sample)
        if sample.get("sys_prompt") and text == self.style.apply_sample({**sample, "sys_prompt": None}):
            warn_once(f"{self.no_place}: it is left out.")
        return self.encode_text(text)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the next answer begins.

        Raises:
            LitGPTError: The style cannot write this conversation, or has no place for its system prompt.
        """
        messages = [self.protected(_with_one_text(message)) for message in messages]
        text = self.style.apply_messages(messages)
        if messages[0]["role"] == "system" and messages[0].get("content") and not self.places_system_prompt:
            raise LitGPTError(f"{self.no_place}; leave it out.")
        return self.encode_text(text)

    def fitting_system_prompt(self, system: str | None) -> str | None:
        """A system prompt for conversations, or None with a warning where the style has no place for one."""
        if system and not self.places_system_prompt:
            warn_once(f"{self.no_place}: it is left out.")
            return None
        return system

    @cached_property
    def places_system_prompt(self) -> bool:
        """Whether the style writes the system prompt of a conversation, or refuses it itself."""
        system: Message = {"role": "system", "content": "Be brief."}
        user: Message = {"role": "user", "content": "Hi"}
        try:
            return self.style.apply_messages([system, user]) != self.style.apply_messages([user])
        except LitGPTError:
            return True

    @property
    def no_place(self) -> str:
        """What is wrong with a system prompt that the style leaves out."""
        return f"The prompt style {type(self.style).__name__} has no place for a system prompt"

    def protected(self, message: Message) -> Message:
        """A message in which what looks like a special token stays text, unless the assistant wrote it."""
        return protected_message(message, self.tokenizer.protect)

    def encode_text(self, text: str) -> list[int]:
        """The token ids of a prompt that is in the model's style already, its messages `protected`."""
        return self.tokenizer.encode_ids(text, bos=False if self.style.adds_bos else None, protected=True)

    def engine(self, slots: int = 1, length: int | None = None, log: Callable[[str], None] | None = None) -> Engine:
        """An engine for this model.

        Args:
            slots: Requests that run at the same time.
            length: Tokens a sequence may have, cut to the model's context; None: the context, or what fits into memory.
            log: Called, before the KV cache is made, with a sentence about its size.
        """
        longest = self.model.max_seq_length
        if length is None:
            length = longest_fit(
                lambda length: self.cache_nbytes(slots, length), longest, slots, self.model.layer_devices
            )
        length = min(length, longest)
        if log is not None:
            size = gigabytes(self.cache_nbytes(slots, length))
            log(f"The KV cache for {slots} x {length} tokens takes {size}.")
        if self.draft is not None:
            if self.deterministic:
                raise LitGPTError("A draft model's answers are not deterministic; leave out one of the two.")
            return SpeculativeEngine(
                self.model, self.draft, self.speculative_k, slots, length, self.dtype, PREFILL_CHUNK
            )
        return Engine(self.model, slots, length, self.dtype, PREFILL_CHUNK, self.compile, self.deterministic)

    def cache_nbytes(self, slots: int, length: int) -> int:
        """Bytes that the KV caches of such an engine take."""
        dtype = self.dtype or self.model.transformer.wte.weight.dtype
        models = [self.model] if self.draft is None else [self.model, self.draft]
        return sum(model.cache_nbytes(slots, length, dtype, PREFILL_CHUNK) for model in models)

    def reply(
        self,
        engine: Engine,
        prompt: list[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> TextStream:
        """Puts a prompt in line and returns its answer to come, as text."""
        stops = stop_strings(stop)  # before there is a request to clean up
        request = engine.submit(prompt, sampling, self.stops, max_new_tokens)
        return TextStream(request, self.tokenizer.stream(), stops)


def find_source(checkpoint_dir: str | Path) -> Checkpoint | Finetuned:
    """What a folder (or one under `checkpoints/`) holds: a whole model, or what a method learned.

    Raises:
        LitGPTError: There is no such folder, or it holds neither.
    """
    return find_finetuned(checkpoint_dir) or find_checkpoint(checkpoint_dir)


def prompting_of(source: Checkpoint | Finetuned) -> tuple[Path, PromptStyle]:
    """The folder of the tokenizer that a model is asked with, and the style of its prompts."""
    if isinstance(source, Finetuned):
        own = any((source.file.parent / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        return source.file.parent if own else source.base.dir, source.prompt_style()
    return source.dir, prompt_style_for(source.dir, source.config)


def _with_one_text(message: Message) -> Message:
    """A message whose content, if it is in parts of text, is one text: few templates take parts."""
    content = message.get("content") if isinstance(message, Mapping) else None
    text = join_text(content) if isinstance(content, list) else None
    return message if text is None else {**message, "content": text}
