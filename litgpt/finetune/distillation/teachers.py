"""Teachers as a user names them: a model's folder, a folder of `litgpt distill prepare`, or a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litgpt.checkpoint.finetuned import Finetuned, open_model
from litgpt.checkpoint.fingerprint import fingerprint
from litgpt.checkpoint.hub import auto_download
from litgpt.data.storage.token_cache import file_hash
from litgpt.engine.inference_model import find_source, prompting_of
from litgpt.engine.sampling import MOST_LOGPROBS
from litgpt.errors import LitGPTError, UnsupportedError, quoted
from litgpt.eval.served import ServedModel
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.training.distill import stored
from litgpt.training.distill.divergences import SMALLEST
from litgpt.training.distill.teachers import Asked, BestTokens, Known
from litgpt.training.loss import IGNORED

PROBED = 64
"""Tokens from all of the vocabulary that tell whether a server has the same."""
ID = "token_id:"
"""What servers write in front of a token's id where they are asked for ids."""


def is_url(teacher: str) -> bool:
    """Whether a teacher is served."""
    return teacher.startswith(("http://", "https://"))


def is_stored(teacher: str) -> bool:
    """Whether it is a folder of `litgpt distill prepare`."""
    return not is_url(teacher) and stored.is_stored(Path(teacher))


def open_teacher(
    teacher: str,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    access_token: str | None,
) -> tuple[GPT, str]:
    """A model beside the student, frozen, and what tells its weights from any other.

    Args:
        teacher: Its folder, or its name on the hub.
        tokenizer: The student's.
        device: Where it goes.
        dtype: Of its weights.
        quantize: Keep them in few bits.
        access_token: For repositories that ask for one.

    Raises:
        LitGPTError: It can't be opened, or has another vocabulary.
    """
    folder = auto_download(teacher, access_token=access_token)
    source = find_source(folder)
    check_same_vocabulary(tokenizer, Tokenizer(prompting_of(source)[0]), str(folder))
    base = source.base if isinstance(source, Finetuned) else source
    learned = file_hash(source.file).hex() if isinstance(source, Finetuned) else ""
    model = open_model(source, device, dtype, quantize).to(device).requires_grad_(False).eval()
    return model, f"{fingerprint(base)} {learned} {quantize or dtype}"


def check_same_vocabulary(student: Tokenizer, teacher: Tokenizer, where: str) -> None:
    """Raises a LitGPTError where a token id means something else to the teacher."""
    sizes = len(student), len(teacher)
    other = sizes[0] != sizes[1] or any(
        student.token_bytes(token) != teacher.token_bytes(token) for token in range(sizes[0])
    )
    if other:
        raise LitGPTError(
            f"The teacher {quoted(where)} has another vocabulary than the student ({sizes[1]:,} tokens, {sizes[0]:,} "
            "here): their distributions can't be compared; take a teacher of the same family, or finetune on text that "
            "it writes."
        )


def probe(tokenizer: Tokenizer) -> list[int]:
    """Tokens from all of a vocabulary that are text by themselves."""
    found = []
    for token in range(0, len(tokenizer), max(1, len(tokenizer) // PROBED)):
        text = tokenizer.token_bytes(token, skip_special_tokens=True).decode("utf-8", "replace")
        found += [token] if text.strip().isprintable() and text.strip() and "\ufffd" not in text else []
    return found


class ServedTeacher:
    """A model of a server with OpenAI's completions; its best tokens count.

    Args:
        url: Of its routes.
        model: Which of its models; None: the first.
        api_key: If it asks for one.
        top_k: How many best tokens it is asked for.
        tokenizer: The student's.

    Raises:
        LitGPTError: It doesn't answer, gives no log-probabilities, or has another vocabulary.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None, top_k: int, tokenizer: Tokenizer) -> None:
        if not 1 <= top_k <= MOST_LOGPROBS:
            raise LitGPTError(f"--top_k is {top_k}; servers give 1 to {MOST_LOGPROBS} best tokens.")
        self.served = ServedModel(url, model, api_key)
        self.top_k, self.vocabulary = top_k, len(tokenizer)
        ids = probe(tokenizer)
        text = self._completion(ids).get("text")
        if not isinstance(text, str) or text.strip() != tokenizer.decode(ids).strip():
            raise LitGPTError(
                f"The teacher at {self.served.url} has another vocabulary than the student: it reads its token ids as "
                f"{quoted(text)}; take a teacher of the same family, or finetune on text that it writes."
            )

    def ask(self, asked: Asked) -> Known:
        """As `Teacher.ask`; the samples are asked about at the same time."""
        cut = []
        for inputs, targets in asked.sequences():
            places = (targets != IGNORED).nonzero().squeeze(1).tolist()
            if places:
                tokens = [*inputs[: places[-1] + 1].tolist(), int(targets[places[-1]])]
                cut.append((tokens, places))
        found = self.served.each("", lambda one: self._rows(*one), cut)
        device = asked.targets.device
        ids, values = (torch.cat([part[at] for part in found]).to(device) for at in (0, 1))
        return BestTokens(ids, values)

    def _rows(self, tokens: list[int], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The best tokens after those at `places`, `(N, k)`, and their log-probabilities."""
        logprobs: Any = self._completion(tokens).get("logprobs")
        rows = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(rows, list) or len(rows) != len(tokens):
            raise UnsupportedError(
                f"{self.served.url} gives no log-probabilities of a prompt (echo and logprobs of /v1/completions); "
                "`litgpt serve` and vLLM give them."
            )
        found = [self._best(rows[place + 1]) for place in places]
        ids = torch.tensor([[token for token, _ in row] for row in found])
        return ids, torch.tensor([[value for _, value in row] for row in found], dtype=torch.float32)

    def _best(self, row: Any) -> list[tuple[int, float]]:
        """The k best of a token's alternatives: a server adds the token itself where it is none of them."""
        try:
            pairs = [(int(name.removeprefix(ID)), float(value)) for name, value in row.items() if name.startswith(ID)]
        except (AttributeError, TypeError, ValueError):
            pairs = []
        best = sorted(pairs, key=lambda pair: -pair[1])[: self.top_k]
        if len(best) < min(self.top_k, self.vocabulary) or not all(
            token >= 0 and value <= 1e-3 for token, value in best
        ):
            raise UnsupportedError(
                f"{self.served.url} doesn't give the {self.top_k} best tokens by their ids "
                "(return_tokens_as_token_ids); `litgpt serve` and vLLM do."
            )
        known = dict(pair for pair in best if pair[0] < self.vocabulary)
        # A teacher may have rows for tokens that there aren't; others stand in for these, all but impossible.
        others = (token for token in range(self.vocabulary) if token not in known)
        best = [*known.items(), *((token, math.log(SMALLEST)) for token in islice(others, len(best) - len(known)))]
        return best

    def _completion(self, tokens: list[int]) -> dict[str, Any]:
        """The prompt, given back with log-probabilities."""
        body = {"model": self.served.model, "prompt": tokens, "max_tokens": 0, "temperature": 0, "echo": True}
        return self.served.choice({**body, "logprobs": self.top_k, "return_tokens_as_token_ids": True})
