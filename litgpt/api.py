"""`LLM`: a language model in a few lines of Python, for use and for training loops of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.checkpoint.atomic import atomic_folder
from litgpt.checkpoint.finetuned import Finetuned, open_model
from litgpt.checkpoint.hub import auto_download
from litgpt.checkpoint.layout import LIT_MODEL, Checkpoint, copy_config_files
from litgpt.checkpoint.reader import trainer_weights
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.engine.detokenizer import TextStream, stop_strings
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS, InferenceModel, find_source, prompting_of
from litgpt.engine.metrics import RequestMetrics
from litgpt.engine.metrics import benchmark_dict_to_markdown_table as benchmark_dict_to_markdown_table
from litgpt.engine.placement import Placement, Strategy
from litgpt.engine.request import check_tokens
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, UnsupportedError, check_token_ids, closest, quoted
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.prompts import PromptStyle, prompt_style_for, save_prompt_style
from litgpt.prompts.base import Message
from litgpt.quantize import is_quantized
from litgpt.tokenizer import Tokenizer
from litgpt.tokenizer.preprocessor import Preprocessor as Preprocessor

CACHE_STEP = 256
"""The KV cache grows in steps of this many tokens."""


class LLM(nn.Module):
    """A language model with its tokenizer and prompt style; `LLM.load` makes one.

    Its parameters are those of `model`, under the same names, so it can stand inside any training loop.
    """

    def __init__(
        self,
        model: GPT,
        preprocessor: Preprocessor | None = None,
        prompt_style: PromptStyle | None = None,
        *,
        checkpoint_dir: Path | None = None,
        dtype: torch.dtype | None = None,
        fixed_kv_cache_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocessor = preprocessor
        """None: the model takes and gives logits only."""
        self.prompt_style = prompt_style or PromptStyle.from_config(model.config)
        self.checkpoint_dir = checkpoint_dir
        """Where the tokenizer and the configuration are, and the weights if they were loaded from there."""
        self.fixed_kv_cache_size = fixed_kv_cache_size
        """Tokens that the KV cache has room for; None: it grows as needed."""
        self._dtype = dtype
        self._deterministic = False
        self._engine: Engine | None = None
        self._has_parts_beside = False
        """Whether an adapter is attached: such a model has parts that a checkpoint of it has no names for."""
        self._as_loaded: tuple[Checkpoint | Finetuned, GPT, list[int]] | None = None
        self._placement: Placement | None = None
        self._register_load_state_dict_pre_hook(_under_model)

    # -- making one

    @classmethod
    def load(
        cls,
        model: str | Path,
        init: Literal["pretrained", "random"] = "pretrained",
        tokenizer_dir: str | Path | None = None,
        access_token: str | None = None,
        distribute: Literal["auto"] | None = "auto",
        parse_special_tokens: bool = False,
    ) -> LLM:
        """Loads a checkpoint folder, LitGPT's or Hugging Face's, or makes a new model.

        Args:
            model: The folder, or a name on the hub (`ORG/NAME`), which is downloaded. With `init="random"`, the name of
                a configuration.
            init: `random`: fresh weights.
            tokenizer_dir: Where the tokenizer is, if not in the folder; needed with `init="random"`.
            access_token: For repositories on the hub that ask for one.
            distribute: `auto`: on the best device there is, in 16 bits where it has them. None: on the CPU, the weights
                as stored; call `distribute` or `trainer_setup` next.
            parse_special_tokens: Take special tokens that a message writes out (`<|im_end|>`) for tokens; else they are
                text, unless an assistant's message has them. A prompt of a model without a prompt style is the whole
                text, and always has its tokens.

        Raises:
            LitGPTError: There is no such folder, name or repository, or it can't be read.
        """
        if init not in ("pretrained", "random"):
            raise LitGPTError(f"init is {quoted(init)}; it must be 'pretrained' or 'random'.")
        if distribute not in ("auto", None):
            raise LitGPTError(f"distribute is {quoted(distribute)}; it must be 'auto' or None.")
        if init == "random":
            if tokenizer_dir is None:
                raise LitGPTError("A model with fresh weights has no tokenizer of its own; give tokenizer_dir.")
            folder = Path(tokenizer_dir)
            gpt = GPT(Config.from_name(str(model)))
            llm = cls(gpt, Preprocessor(Tokenizer(folder)), prompt_style_for(folder, gpt.config), checkpoint_dir=folder)
        else:
            llm = cls._pretrained(auto_download(model, access_token), tokenizer_dir)
        llm.tokenizer.parse_special_tokens = parse_special_tokens
        if distribute == "auto":
            llm.distribute()
        return llm

    @classmethod
    def _pretrained(cls, folder: Path, tokenizer_dir: str | Path | None) -> LLM:
        source = find_source(folder)
        base, style = prompting_of(source)
        llm = cls(open_model(source), Preprocessor(Tokenizer(tokenizer_dir or base)), style, checkpoint_dir=base)
        llm._has_parts_beside = isinstance(source, Finetuned) and not isinstance(source.method, LoRA)
        llm._note_loaded(source)
        return llm

    def distribute(
        self,
        accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
        devices: int | Literal["auto"] = "auto",
        precision: str | None = None,
        quantize: str | None = None,
        generate_strategy: Strategy | None = None,
        fixed_kv_cache_size: int | Literal["max_model_supported"] | None = None,
        deterministic: bool = False,
    ) -> None:
        """Moves the model to where it is to generate; weights that are still as loaded are read again in the precision.

        Args:
            accelerator: The kind of device.
            devices: How many, at most one a layer; `auto`: one, or with a `generate_strategy` all that there are.
            precision: `32-true`, `bf16-true`, `16-true`, `bf16-mixed` or `16-mixed`; None: 16 bits where the device has
                them.
            quantize: Keep linear layers in 4 or 8 bits: `bnb.nf4`, `bnb.nf4-dq`, `bnb.fp4`, `bnb.fp4-dq`, `bnb.int8`,
                `int8` or `int4`. Such a model generates; it can be neither trained nor saved.
            generate_strategy: How several devices share the model. `sequential`: each GPU has a run of its layers.
                `tensor_parallel`: each process has its share of every layer; those of `torchrun`, on CPUs too, or one
                for each GPU, started here, that runs the whole program as this one does.
            fixed_kv_cache_size: Tokens to make room for once and for all; None: as each call needs.
            deterministic: Give a prompt the same answer, to the bit, alone and among others.

        Raises:
            LitGPTError: The devices, the precision or the size can't be had, or they can't share this model.
        """
        size = self.config.block_size if fixed_kv_cache_size == "max_model_supported" else fixed_kv_cache_size
        if size is not None and not (isinstance(size, int) and 0 < size <= self.config.block_size):
            raise LitGPTError(
                f"fixed_kv_cache_size is {quoted(size)}; this model's context is {self.config.block_size} tokens."
            )
        placement = Placement.of(accelerator, precision, quantize, generate_strategy, devices)
        if source := self._unchanged_source():
            self.model = placement.open(source)
            self._note_loaded(source)
        else:
            self._check_whole("distributed again")
            placement.move(self.model)
        self._placement, self._dtype = placement, placement.compute_dtype
        if self.preprocessor is not None:
            self.preprocessor.device = self.device
        self.fixed_kv_cache_size = size
        self._deterministic, self._engine = deterministic, None

    def trainer_setup(self, trainer_ckpt: str | Path | None = None) -> None:
        """Makes the model ready for a training loop: float32 parameters on the CPU, in training mode.

        Args:
            trainer_ckpt: A checkpoint of Lightning's Trainer to take the weights from, in place of those in the model.

        Raises:
            LitGPTError: The file has no weights for this model.
        """
        if source := self._unchanged_source():
            self.model, self._placement = open_model(source, dtype=torch.float32), None
        self._check_whole("trained")
        self.model.to(device="cpu", dtype=torch.float32).train().requires_grad_(True)
        self._as_loaded, self._engine, self._dtype = None, None, None
        if self.preprocessor is not None:
            self.preprocessor.device = torch.device("cpu")
        if trainer_ckpt is not None:
            self.model.load_state_dict(trainer_weights(Path(trainer_ckpt), list(self.model.state_dict())))

    # -- what it is made of

    @property
    def config(self) -> Config:
        """The model's configuration."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            LitGPTError: The model was made without one.
        """
        if self.preprocessor is None:
            raise LitGPTError("This LLM was made without a tokenizer: give it a Preprocessor.")
        return self.preprocessor.tokenizer

    @property
    def fabric(self) -> Any:
        """Lightning Fabric for where the model is, in its precision; None where it was not distributed."""
        return None if self._placement is None else self._placement.fabric()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.transformer.wte.weight.device

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's, under the model's names."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Into the model, by the model's names."""
        self._as_loaded = None
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def save(self, out_dir: str | Path | None = None, prompt_style: PromptStyle | None = None) -> None:
        """Writes a complete LitGPT checkpoint folder.

        Args:
            out_dir: The folder; None: one in `out/` that is named as the model.
            prompt_style: The style to note in it, if not the model's own.

        Raises:
            LitGPTError: The folder can't be written.
        """
        self._check_whole("saved")
        if self._has_parts_beside:
            raise UnsupportedError(
                "A model with an adapter can't be saved as a whole one; copy the folder it came from."
            )
        with atomic_folder(out_dir or Path("out") / (self.config.name or "llm")) as folder:
            if self.checkpoint_dir is not None:
                copy_config_files(self.checkpoint_dir, folder)
            self.config.save(folder)
            save_prompt_style(prompt_style or self.prompt_style, folder)
            save_state(folder / LIT_MODEL, self.model.state_dict())

    # -- training

    def forward(
        self,
        input_ids: Tensor,
        target_ids: Tensor | None = None,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits `(B, T, V)`; with targets, logits and the mean loss per target token.

        Args:
            input_ids: Token ids `(B, T)`.
            target_ids: The same ids `(B, T)`, not shifted, -100 where there is nothing to learn.
            loss_fn: Of the logits `(B, T - 1, V)` and the targets that follow them `(B, T - 1)`; None: cross-entropy.
        """
        if input_ids.device.type == "cpu":  # elsewhere looking at the ids would wait for the device
            check_token_ids(input_ids.flatten().tolist(), self.model.transformer.wte.num_embeddings, "The input")
        logits = self.model(input_ids)
        if target_ids is None:
            return logits
        loss_fn = loss_fn or mean_cross_entropy
        return logits, loss_fn(logits[:, :-1], target_ids[:, 1:])

    # -- generating

    def generate(
        self,
        prompt: str | Sequence[str],
        sys_prompt: str | None = None,
        max_new_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        return_as_token_ids: bool = False,
        stream: bool = False,
        **settings: Any,
    ) -> Any:
        """Answers a prompt, or a list of prompts, which are worked on together.

        `torch.manual_seed` makes the answers repeatable.

        Args:
            prompt: A text, or several; each is put into the model's prompt style.
            sys_prompt: A system prompt, for prompt styles that have one.
            max_new_tokens: The most tokens an answer may have.
            temperature: Higher is more random; 0 always takes the most likely token.
            top_k: Choose among this many most likely tokens; None: all.
            top_p: Choose among the most likely tokens that have this much probability together.
            return_as_token_ids: Return ids `(T,)` in place of text.
            stream: Return an iterator over pieces of the answer as they come.
            settings: Further fields of `Sampling` (`seed`, `min_p`, `logit_bias`, `grammar` …), and `stop`: texts that
                end an answer.

        Returns:
            The answer without its prompt: a str, or a list of them for a list of prompts; ids instead with
            `return_as_token_ids`; an iterator over pieces (or over ids, `(1,)` each) with `stream`.

        Raises:
            LitGPTError: A prompt is too long, or another argument makes no sense.
        """
        texts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
        if not all(isinstance(text, str) for text in texts):
            raise LitGPTError(f"A prompt is a text, or a list of texts, not {quoted(prompt)}.")
        if stream and not isinstance(prompt, str):
            raise LitGPTError("Only a single prompt can be streamed; give one text, or leave out stream.")
        prompts = [self._inference_model.encode(text, sys_prompt) for text in texts]
        settings |= dict(temperature=temperature, top_k=top_k, top_p=top_p)
        replies = self._submit(prompts, max_new_tokens, return_as_token_ids, **settings)
        if stream:
            return self._stream(replies[0], return_as_token_ids)
        try:
            if return_as_token_ids:
                answers: list[Any] = [self._ids(reply.request.result()) for reply in replies]
            else:
                answers = ["".join(reply) for reply in replies]
        finally:  # whatever ends this early, Ctrl-C too, leaves no request behind
            for reply in replies:
                reply.request.cancel()
        return answers[0] if isinstance(prompt, str) else answers

    def chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        stream: bool = False,
        **settings: Any,
    ) -> str | Iterator[str]:
        """Answers a conversation.

        Args:
            messages: Its turns, `{"role": ..., "content": ...}` each, the system prompt as the first of them.
            max_new_tokens: The most tokens the answer may have.
            temperature: Higher is more random; 0 always takes the most likely token.
            top_k: Choose among this many most likely tokens; None: all.
            top_p: Choose among the most likely tokens that have this much probability together.
            stream: Return an iterator over pieces of the answer as they come.
            settings: As `generate`.

        Raises:
            LitGPTError: The prompt style can't write this conversation, it is too long, or an argument makes no sense.
        """
        if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
            raise LitGPTError(f'A conversation is a list of {{"role": …, "content": …}}, not {quoted(messages)}.')
        prompt = self._inference_model.encode_messages(messages)
        settings |= dict(temperature=temperature, top_k=top_k, top_p=top_p)
        (reply,) = self._submit([prompt], max_new_tokens, **settings)
        pieces = self._stream(reply, as_ids=False)
        return pieces if stream else "".join(pieces)

    def benchmark(self, num_iterations: int = 1, **kwargs: Any) -> tuple[Any, dict[str, list[float]]]:
        """Generates and measures.

        Args:
            num_iterations: How often.
            kwargs: What `generate` takes, for a single prompt.

        Raises:
            LitGPTError: As `generate`; or there is nothing to measure.

        Returns:
            The last answer and, one value an iteration: "Seconds total", "Seconds to first token", "Tokens generated",
            "Inference speed in tokens/sec", "Total GPU memory allocated in GB".
        """
        stream, as_ids = kwargs.pop("stream", False), kwargs.pop("return_as_token_ids", False)
        prompt, sys_prompt = kwargs.pop("prompt", None), kwargs.pop("sys_prompt", None)
        max_new_tokens = kwargs.pop("max_new_tokens", 50)
        if not isinstance(prompt, str) or num_iterations < 1:
            raise LitGPTError("A benchmark needs one prompt, a text, and 1 iteration or more.")
        rows: dict[str, list[float]] = {}
        answer: Any = None
        for _ in range(num_iterations):
            encoded = self._inference_model.encode(prompt, sys_prompt)
            (reply,) = self._submit([encoded], max_new_tokens, as_ids, **kwargs)
            pieces = list(self._stream(reply, as_ids))
            answer = pieces if stream else self._ids(reply.request.output) if as_ids else "".join(pieces)
            metrics = RequestMetrics.of(reply.request)
            gpu = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
            for name, value in {
                "Seconds total": metrics.seconds,
                "Seconds to first token": metrics.time_to_first_token,
                "Tokens generated": metrics.n_tokens,
                "Inference speed in tokens/sec": metrics.tokens_per_second,
                "Total GPU memory allocated in GB": gpu,
            }.items():
                rows.setdefault(name, []).append(value)
        return answer, rows

    @property
    def _inference_model(self) -> InferenceModel:
        tokenizer = Tokenizer.of(self.tokenizer)
        return InferenceModel(self.model, tokenizer, self.prompt_style, self._dtype, deterministic=self._deterministic)

    def _submit(
        self, prompts: Sequence[list[int]], max_new_tokens: int, as_ids: bool = False, **settings: Any
    ) -> list[TextStream]:
        """Puts prompts in line; `settings` are fields of `Sampling`, and `stop`."""
        stop = stop_strings(settings.pop("stop", None))
        if stop and as_ids:
            raise LitGPTError("Texts in `stop` end a text, not token ids; leave out stop or return_as_token_ids.")
        known = [field.name for field in fields(Sampling)]
        for name in settings:
            if name not in known:
                raise LitGPTError(f"There is no setting {quoted(name)} of how to generate.{closest(name, known)}")
        sampling = Sampling(**settings)
        if not prompts:
            return []
        if not isinstance(max_new_tokens, int):
            raise LitGPTError(f"max_new_tokens is {quoted(max_new_tokens)}; it must be a whole number, 1 or more.")
        for prompt in prompts:  # all of them, before the first is put in line
            check_tokens(prompt, sampling, self.model)
        inference_model, longest = self._inference_model, max(map(len, prompts))
        engine = self._engine_for(inference_model, min(len(prompts), MAX_CONCURRENT_REQUESTS), longest + max_new_tokens)
        return [inference_model.reply(engine, prompt, sampling, max_new_tokens, stop) for prompt in prompts]

    def _engine_for(self, inference_model: InferenceModel, slots: int, length: int) -> Engine:
        """The engine of the last call where it is large enough, else a larger one; streams still open keep theirs."""
        length = self.fixed_kv_cache_size or min(length + -length % CACHE_STEP, self.model.max_seq_length)
        last = self._engine
        if last is not None and last.model is self.model and last.device == self.device:
            if last.slots >= slots and last.length >= length:
                if not last.busy:
                    last.forget()  # the weights may have been trained since
                return last
            slots, length = max(slots, last.slots), max(length, last.length)
        self._engine = None  # its memory is free before the new one's is taken
        self._engine = inference_model.engine(slots, length)
        return self._engine

    def _ids(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.device)

    def _stream(self, reply: TextStream, as_ids: bool) -> Iterator[Any]:
        try:
            if as_ids:
                for token in reply.request:
                    yield self._ids([token])
            else:
                yield from reply
        finally:  # an iterator that is given up ends its request
            reply.request.cancel()

    def _check_whole(self, done: str) -> None:
        """Raises a LitGPTError where the weights that it was made of are gone, or only a share of them there."""
        if is_quantized(self.model):
            raise UnsupportedError(f"A quantized model can't be {done}; load it again without quantize.")
        if self._placement is not None and not self._placement.alone:
            raise UnsupportedError(f"A model on several devices can't be {done}; load it again.")

    def _note_loaded(self, source: Checkpoint | Finetuned) -> None:
        self._as_loaded = source, self.model, _versions(self.model)

    def _unchanged_source(self) -> Checkpoint | Finetuned | None:
        """Where the weights came from, if nothing was written to them since."""
        if self._as_loaded is None:
            return None
        source, model, versions = self._as_loaded
        return source if model is self.model and versions == _versions(model) else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}


def _versions(model: GPT) -> list[int]:
    """Counts that change whenever a parameter is written to."""
    return [parameter._version for parameter in model.parameters()]


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over targets `(B, T)` that are not -100 of the cross-entropy of logits `(B, T, V)`, in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long(), ignore_index=-100)


def _under_model(state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Lets a module that holds an `LLM` load what its own `state_dict` gave: the names have no `model.` in them."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
