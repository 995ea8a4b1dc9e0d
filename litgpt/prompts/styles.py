"""The prompt styles: rows that say how a system message, a user's message and the head of an answer are written, and
`ChatTemplate`, the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.errors import LitGPTError
from litgpt.prompts.base import Message, PromptStyle, prompt_styles
from litgpt.prompts.chat_template import Template, read_templates
from litgpt.tokenizer.files import special_tokens

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer


class Alpaca(PromptStyle, name="alpaca"):
    default_system = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
    input_system = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
    )
    system, system_end = "{text}", "\n\n"
    user = "{system}### Instruction:\n{prompt}\n\n"
    reply = "### Response:\n"

    def _system(self, given: str | None, sample: Mapping[str, Any]) -> str:
        return super()._system(given or (self.input_system if sample.get("input") else None), sample)

    def _user(self, prompt: str, system: str, sample: Mapping[str, Any]) -> str:
        text = super()._user(prompt, system, sample)
        return f"{text}### Input:\n{sample['input']}\n\n" if sample.get("input") else text


class FLAN(PromptStyle, name="flan"):
    default_system, system, system_end = Alpaca.default_system, Alpaca.system, Alpaca.system_end
    user, reply = Alpaca.user, Alpaca.reply


class Longform(PromptStyle, name="longform"):
    default_system, system, system_end = Alpaca.input_system, Alpaca.system, Alpaca.system_end
    user, reply = Alpaca.user, Alpaca.reply


class StableLMAlpha(PromptStyle, name="stablelm-alpha"):
    default_system = (
        "# StableLM Tuned (Alpha version)\n"
        "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
        "- StableLM is excited to be able to help the user, but will refuse to do anything that could be "
        "considered harmful to the user.\n"
        "- StableLM is more than just an information source, StableLM is also able to write poetry, short "
        "stories, and make jokes.\n"
        "- StableLM will refuse to participate in anything that could harm a human."
    )
    system = "<|SYSTEM|>{text}"
    user, reply, end = "{system}<|USER|>{prompt}", "<|ASSISTANT|>", ""
    stops = (("<|SYSTEM|>",), ("<|ASSISTANT|>",), ("<|USER|>",))


class StableLMZephyr(PromptStyle, name="stablelm-zephyr"):
    user, reply, end = "<|user|>\n{prompt}<|endoftext|>\n", "<|assistant|>\n", "<|endoftext|>\n"
    stops = (("<|endoftext|>",),)


class Falcon(PromptStyle, name="falcon"):
    user, reply = "{prompt}\n", "Answer:"
    stops = (("User", ":"), ("Ċ", "User"))


class Falcon3(PromptStyle, name="falcon3"):
    user, reply, end = StableLMZephyr.user, StableLMZephyr.reply, StableLMZephyr.end
    stops = (("<|endoftext|>",),)


class Llama2FunctionCalling(PromptStyle, name="llama2-function-calling"):
    begin = (
        '<FUNCTIONS>{{"function": "search_bing", "description": "Search the web for content on Bing. This '
        'allows users to search online/the internet/the web for content.", "arguments": [{{"name": "query", '
        '"type": "string", "description": "The search query string"}}]}}</FUNCTIONS>\n\n'
    )
    default_system = (
        "You are a helpful, respectful and honest assistant. Always answer as helpfully aspossible. Your only "
        "response should be JSON formatted functions"
    )
    system = "<<SYS>>\n{text}\n<</SYS>>\n\n"
    user = "[INST]{system}{prompt}[/INST]\n\n"


class Llama2(PromptStyle, name="llama2"):
    default_system = (
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "
        "being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
        "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive "
        "in nature.\n\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
        "something not correct. If you don't know the answer to a question, please don't share false "
        "information."
    )
    system = "<<SYS>>\n{text}\n<</SYS>>\n\n "
    user, end = "[INST] {system}{prompt} [/INST] ", " </s><s>"


class FreeWilly2(PromptStyle, name="freewilly2"):
    default_system = "This is a system prompt, please behave and help the user."
    system = "### System:\n{text}\n\n"
    user, reply = "{system}### User:\n{prompt}\n\n", "### Assistant:\n"


class Platypus(PromptStyle, name="platypus"):
    user, reply = "### Instruction:\n\n{prompt}\n\n", "### Response:\n"


class StableCode(PromptStyle, name="stablecode"):
    user, reply, end = "###Instruction\n{prompt}", "###Response\n", "\n"


class CodeLlama(PromptStyle, name="codellama"):
    system = "<<SYS>>\n{text}\n<</SYS>>\n\n"
    user, end = "[INST] {system}{prompt} [/INST]", "</s>"


class Phi1(PromptStyle, name="phi-1"):
    user, reply = "{prompt}\n\n", "Answer:"
    stops = (("Answer", ":"), ("Ċ", "Answer", ":"))


class Phi2(PromptStyle, name="phi-2"):
    user, reply, end = "Instruct: {prompt}\n", "Output:", "\n"


class Phi3(PromptStyle, name="phi-3"):
    default_system = "You are a helpful assistant."
    system = "<|system|>\n{text}<|end|>\n"
    user, reply, end = "{system}<|user|>\n{prompt}<|end|>\n", "<|assistant|>\n", "<|end|>\n"
    stops = (("<|end|>",),)


class Phi4(PromptStyle, name="phi-4"):
    system = "<|im_start|>system<|im_sep|>{text}<|im_end|>"
    user = "{system}<|im_start|>user<|im_sep|>{prompt}<|im_end|>"
    reply, end = "<|im_start|>assistant<|im_sep|>", "<|im_end|>"
    stops = (("<|im_end|>",),)


class Phi4Reasoning(Phi4, name="phi-4-reasoning"):
    # One `|` short, as in LitGPT: what its users finetuned with.
    system = "<|im_start>system<|im_sep|>{text}<|im_end|>"
    default_system = (
        "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves "
        "thoroughly exploring questions through a systematic thinking process before providing the final "
        "precise and accurate solutions. This requires engaging in a comprehensive cycle of analysis, "
        "summarizing, exploration, reassessment, reflection, backtracing, and iteration to develop "
        "well-considered thinking process. Please structure your response into two main sections: Thought and "
        "Solution using the specified format: <think> {Thought section} </think> {Solution section}. In the "
        "Thought section, detail your reasoning process in steps. Each step should include detailed "
        "considerations such as analysing questions, summarizing relevant findings, brainstorming new ideas, "
        "verifying the accuracy of the current steps, refining any errors, and revisiting previous steps. In "
        "the Solution section, based on various attempts, explorations, and reflections from the Thought "
        "section, systematically present the final solution that you deem correct. The Solution section should "
        "be logical, accurate, and concise and detail necessary steps needed to reach the conclusion. Now, try "
        "to solve the following question through the above guidelines:"
    )


class Phi4Mini(PromptStyle, name="phi-4-mini"):
    system = "<|system|>{text}<|end|>"
    user, reply, end = "{system}<|user|>{prompt}<|end|>", "<|assistant|>", "<|end|>"
    stops = (("<|end|>",),)


class Phi4MiniReasoning(Phi4Mini, name="phi-4-mini-reasoning"):
    default_system = "Your name is Phi, an AI math expert developed by Microsoft."


class TinyLlama(PromptStyle, name="tinyllama"):
    default_system = "You are a friendly chatbot who always gives helpful, detailed, and polite answers."
    system = "<|system|>\n{text}</s>\n"
    user, reply, end = "{system}<|user|>\n{prompt}</s>\n", "<|assistant|>\n", "</s>\n"
    stops = (("</s>",),)


class Gemma(PromptStyle, name="gemma"):
    user = "<start_of_turn>user\n{prompt}<end_of_turn>\n"
    reply, end = "<start_of_turn>model\n", "<end_of_turn>\n"
    stops = (("<end_of_turn>",),)


class Llama3(PromptStyle, name="llama3"):
    adds_bos = True
    default_system = "You are a helpful assistant."
    begin = "<|begin_of_text|>"
    system = "<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>"
    user = "{system}<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
    reply, end = "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"
    stops = (("<|eot_id|>",),)


class R1Base(PromptStyle, name="r1"):
    system = "{text}"
    user, reply, end = "{system}<｜User｜>{prompt}", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
    stops = (("<｜end▁of▁sentence｜>",),)


class OLMo(PromptStyle, name="olmo"):
    begin = "<|endoftext|>"
    user, reply, end = "<|user|>\n{prompt}\n", "<|assistant|>\n", "<|endoftext|>\n"
    stops = (("<|endoftext|>",),)


class ChatML(PromptStyle, name="chatml"):
    system = "<|im_start|>system\n{text}<|im_end|>\n"
    user, reply = "{system}<|im_start|>user\n{prompt}<|im_end|>\n", "<|im_start|>assistant\n"
    end = "<|im_end|>\n"
    stops = (("<|im_end|>",),)

    def __init__(self, system_message: str | None = None) -> None:
        if system_message is not None:
            self.default_system = system_message

    @property
    def system_message(self) -> str | None:
        """The system message where none is given."""
        return self.default_system

    def settings(self) -> dict[str, Any]:
        return {} if self.default_system == type(self).default_system else {"system_message": self.default_system}


class Qwen2_5(ChatML, name="qwen2.5"):
    default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class Qwen2_5_Math(ChatML, name="qwen2.5-math"):
    default_system = "Please reason step by step, and put your final answer within \\boxed{}."


class QwQ(ChatML, name="qwq"):
    default_system = (
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
    )


class Qwen3(ChatML, name="qwen3"):
    pass


class SmolLM2(ChatML, name="smollm2"):
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Salamandra(ChatML, name="salamandra"):
    default_system = (
        "I am Salamandra, an AI language model developed at the Barcelona Supercomputing Centre (BSC) by the "
        "Language Technologies Unit. My knowledge base was last updated on August 2023. Today Date: "
        "2024-09-30\n"
        "Soy Salamandra, un modelo lingüístico de IA desarrollado en el Barcelona Supercomputing Centre (BSC) "
        "por la Language Technologies Unit. Mi base de conocimientos se actualizó por última vez en agosto de "
        "2023.\n"
        "Soc Salamandra, un model de llenguatge d'IA desenvolupat al Barcelona Supercomputing Centre (BSC) per "
        "la Language Technologies Unit."
    )


class Default(PromptStyle, name="default"):
    """The prompt as it is."""

    user = "{prompt}"
    end = "\n"


class ChatTemplate(PromptStyle, name="chat"):
    """The tokenizer's own template, rendered as `transformers` renders it.

    Args:
        checkpoint_dir: The folder whose template it is. Without one (the name `chat` on the command line) it gets the
            template from `for_checkpoint`.

    Raises:
        LitGPTError: The folder has no template, or a broken one.
    """

    adds_bos = True

    def __init__(self, checkpoint_dir: str | Path | None = None) -> None:
        self._templates: dict[str, Template] = {}
        if checkpoint_dir is not None:
            self._templates = _load_templates(Path(checkpoint_dir))

    @classmethod
    def from_source(cls, source: str, *, where: str = "The chat template", **tokens: str) -> ChatTemplate:
        """A template given as Jinja text, with the special tokens it may name (`bos_token="<s>"`); errors call it
        `where`."""
        style = cls()
        style._templates = {"default": Template(source, tokens, where)}
        return style

    def apply(self, prompt: str | Sequence[Message], *, sys_prompt: str | None = None, **kwargs: Any) -> str:
        if not isinstance(prompt, str):
            return super().apply(prompt, sys_prompt=sys_prompt)
        text = f"{prompt}\n\n{kwargs['input']}" if kwargs.get("input") else prompt
        system = [{"role": "system", "content": sys_prompt}] if sys_prompt else []
        return self.apply_messages([*system, {"role": "user", "content": text}])

    def apply_messages(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """As any style's, with tools, further roles and what else (`enable_thinking=False`) the template reads."""
        template = self.template("tool_use" if tools else "default")
        return template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)

    @property
    def templates(self) -> Mapping[str, Template]:
        """The templates by name; none as long as no checkpoint is given."""
        return self._templates

    def template(self, name: str = "default") -> Template:
        """The template called `name`, else the default one.

        Raises:
            LitGPTError: There is none.
        """
        found = self._templates.get(name) or self._templates.get("default")
        if found is None and self._templates:
            raise LitGPTError(
                f"The tokenizer has the chat templates {', '.join(sorted(self._templates))} and no default one."
            )
        if found is None:
            raise LitGPTError(
                "The prompt style `chat` is the template of a checkpoint's tokenizer, and no checkpoint is given."
            )
        return found

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[list[int], ...]:
        """The tokenizer's own, and the special token that the template puts after an answer."""
        found = super().stop_tokens(tokenizer)
        try:
            text = self.apply_messages(
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ANSWER"}],
                add_generation_prompt=False,
            )
        except LitGPTError:
            return found
        after = text.rpartition("ANSWER")[2].lstrip()
        first = tokenizer.encode_ids(after, bos=False)[:1]
        is_special = bool(first) and not tokenizer.decode(first) and bool(tokenizer.decode(first, False))
        return (*found, first) if is_special and first not in found else found

    def for_checkpoint(self, checkpoint_dir: str | Path) -> PromptStyle:
        return self if self._templates else ChatTemplate(checkpoint_dir)


def _load_templates(folder: Path) -> dict[str, Template]:
    tokens = special_tokens(folder)
    found = {
        name: Template(source, tokens, f"The chat template in {folder}")
        for name, source in read_templates(folder).items()
    }
    if not found:
        raise LitGPTError(
            f"The tokenizer in {folder} has no chat template; choose a prompt style: {', '.join(prompt_styles)}."
        )
    return found
