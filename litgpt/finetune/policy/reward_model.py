"""A reward model: how good an answer is, by a Hugging Face model that scores texts with one number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from litgpt.checkpoint.hub import auto_download
from litgpt.data.prompts_to_answer import PROMPT_MESSAGES
from litgpt.engine.inference_model import prompting_of
from litgpt.errors import LitGPTError, UnsupportedError
from litgpt.eval.scoring import Scorer
from litgpt.finetune.policy.classifier import ENDING, Classifier, open_classifier
from litgpt.prompts import ChatTemplate
from litgpt.prompts.base import Message, protected_message
from litgpt.tokenizer import Tokenizer


class RewardModel:
    """Scores conversations in its own chat template, or texts where it has none.

    Args:
        folder: Hugging Face's, or a name on the hub.
        device: Where it computes.
        dtype: Of its weights; None: as stored.

    Raises:
        LitGPTError: There is no such folder, or what is in it is no reward model.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.classifier: Classifier = open_classifier(auto_download(Path(folder)), device, dtype)
        labels, width = self.classifier.score.shape
        if labels != 1 or width != self.classifier.model.config.n_embd:
            raise UnsupportedError(
                f"{folder} scores texts by {labels} labels; a reward model is a …{ENDING} with one (num_labels: 1)."
            )
        tokenizer_dir, style = prompting_of(self.classifier.checkpoint)
        self.tokenizer = Tokenizer(tokenizer_dir)
        self.template = style if isinstance(style, ChatTemplate) else None
        self._scorer = Scorer(self.classifier.model)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        """The score of each answer, after its prompt."""
        messages = columns.get(PROMPT_MESSAGES) or [None] * len(prompts)
        return self.scores([self._tokens(*one) for one in zip(prompts, completions, messages, strict=True)])

    def scores(self, texts: Sequence[list[int]]) -> list[float]:
        """The score of each text, given as token ids.

        Raises:
            LitGPTError: One is empty or longer than the model's context.
        """
        longest = self.classifier.model.max_seq_length
        if wrong := next((text for text in texts if not 0 < len(text) <= longest), None):
            raise LitGPTError(
                f"An answer with its prompt has {len(wrong):,} tokens for the reward model, whose context is "
                f"{longest:,}; lower --max_new_tokens."
            )
        found = [0.0] * len(texts)
        weight = self.classifier.score.float()  # (1, C)
        for number, states in self._scorer.hidden_states(texts):
            state = states[self.classifier.last(texts[number])].float()  # (C,)
            found[number] = float(weight @ state)
        return found

    def _tokens(self, prompt: str, completion: str, messages: Sequence[Message] | None) -> list[int]:
        if self.template is None or messages is None:
            return self.tokenizer.encode_ids(prompt + completion)
        talk: list[Message] = [*messages, {"role": "assistant", "content": completion}]
        talk = [protected_message(message, self.tokenizer.protect) for message in talk]
        text = self.template.apply_messages(talk, add_generation_prompt=False)
        return self.tokenizer.encode_ids(text, bos=False, protected=True)
