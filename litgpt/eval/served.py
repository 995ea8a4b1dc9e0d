"""A model behind OpenAI's completions, ours or another's, as evaluation asks it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from litgpt.errors import LitGPTError, UnsupportedError, escaped, one_line, quoted
from litgpt.eval.models import Answering, Likelihood, Progress, Windows
from litgpt.prompts.base import Message

AT_ONCE = 8
"""Requests that wait for their answers at the same time."""
TIMEOUT = 600.0
"""Seconds without a byte of the answer."""
MAX_ANSWER = 200_000_000
"""Bytes."""
T = TypeVar("T")
U = TypeVar("U")


class ServedModel:
    """A model of a server.

    Args:
        url: Of its routes: `http://127.0.0.1:8000/v1`, with or without `/v1`.
        model: Which of its models; None: the first that it lists.
        api_key: If it asks for one.

    Raises:
        LitGPTError: The server doesn't answer, or has no such model.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        url = url.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self._key = api_key
        listed = self._ask("/models")
        names = [one.get("id") for one in listed.get("data", []) if isinstance(one, dict)]
        if not names or (model is not None and model not in names):
            raise LitGPTError(f"{self.url} has the models {quoted(names)}, and not {quoted(model)}; name one of them.")
        self.model = str(model or names[0])
        self.name = f"{self.model} at {self.url}"

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """As asked, from the log-probabilities of the tokens that begin in the continuation; the first token of all,
        which the server doesn't predict, does not count."""
        return self.each("Continuations", lambda pair: self._likelihood(pair[0] + pair[1], len(pair[0])), pairs)

    def rolling(self, texts: Sequence[str], windows: Windows) -> list[Likelihood]:
        """As asked; a text is a prompt of its own. Windows need the server's `/tokenize`."""
        if windows == Windows() and self.context is None:
            return self.each("Texts", lambda text: self._likelihood(text, 0), texts)
        if self.context is None:
            raise UnsupportedError(f"{self.url} has no route /tokenize, which window and stride need; leave them out.")
        found = []
        for text in texts:
            tokens = self._ask("/tokenize", {"model": self.model, "prompt": text}, above=True)["tokens"]
            rows = windows.over(tokens[1:], tokens[0], self.context)
            parts = self.each("Windows", lambda row: self._likelihood([*row[0], *row[1]], len(row[0])), rows)
            found.append(
                Likelihood(
                    sum(part.logprob for part in parts),
                    all(part.greedy for part in parts),
                    sum(part.n_tokens for part in parts),
                )
            )
        return found

    def answer(self, prompts: Sequence[str], how: Sequence[Answering]) -> list[str]:
        """As asked."""
        return self.each("Answers", lambda one: self._answer(*one), list(zip(prompts, how, strict=True)))

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        """Servers put conversations into a model's style themselves, and don't tell it.

        Raises:
            LitGPTError: Always.
        """
        raise UnsupportedError("A server doesn't tell its model's prompt style; leave out apply_chat_template.")

    def _answer(self, prompt: str, how: Answering) -> str:
        sampling = how.sampling
        body = {"model": self.model, "prompt": prompt, "max_tokens": how.max_new_tokens, "top_p": sampling.top_p}
        body |= {"temperature": sampling.temperature}
        body |= {} if sampling.seed is None else {"seed": sampling.seed}
        body |= {"stop": list(how.stop[:4])} if how.stop else {}  # OpenAI takes no more
        text = str(self.choice(body).get("text", ""))
        return text[: min((at for stop in how.stop if (at := text.find(stop)) >= 0), default=len(text))]

    def _likelihood(self, prompt: str | list[int], begin: int) -> Likelihood:
        """Of a prompt from its token, or in a text its character, number `begin` on."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1}
        found: Any = self.choice(body).get("logprobs")
        try:
            places = range(len(found["tokens"])) if isinstance(prompt, list) else found["text_offset"]
            rows = list(zip(places, found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True))
            rows = [row for row in rows if row[0] >= begin and row[2] is not None]
            logprob = sum(float(row[2]) for row in rows)
            # Tokens that are written alike may be two; the likeliest is what counts.
            greedy = all(row[2] >= max(row[3].values(), default=row[2]) for row in rows)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UnsupportedError(
                f"{self.url} gives no log-probabilities of a prompt (echo and logprobs of /v1/completions), which the"
                " task needs; `litgpt serve` and vLLM give them."
            ) from None
        return Likelihood(logprob, greedy, len(rows))

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = self._ask("/completions", body).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise LitGPTError(f"{self.url}/completions gave no choices; it is no server with OpenAI's completions.")
        return choices[0]

    @cached_property
    def context(self) -> int | None:
        """Tokens that it takes at once, the first of which it doesn't predict; None: it doesn't tell."""
        try:
            found = self._ask("/tokenize", {"model": self.model, "prompt": "a"}, above=True)
        except LitGPTError:
            return None
        length = found.get("max_model_len")
        return length - 1 if isinstance(found.get("tokens"), list) and isinstance(length, int) else None

    def each(self, what: str, ask: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Asks several at once; their answers in order."""
        progress = Progress(what, len(items))
        found: list[U] = []
        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                for answer in threads.map(ask, items):
                    found.append(answer)
                    progress(1)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _ask(self, route: str, body: dict[str, Any] | None = None, above: bool = False) -> dict[str, Any]:
        """What the server answers, a JSON object.

        Raises:
            LitGPTError: It doesn't, or says that something is wrong.
        """
        url = (self.url.removesuffix("/v1") if above else self.url) + route
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=TIMEOUT) as answer:
                content = json.loads(answer.read(MAX_ANSWER))
        except urllib.error.HTTPError as error:
            raise LitGPTError(f"{url} answers with status {error.code}: {_reason(error)}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise LitGPTError(f"{url} doesn't answer as a server of models does ({one_line(error)}).") from None
        if not isinstance(content, dict):
            raise LitGPTError(f"{url} answers with no JSON object; it is no server with OpenAI's routes.")
        return content


def _reason(error: urllib.error.HTTPError) -> str:
    """What a server says is wrong."""
    said = error.read(10_000).decode("utf-8", "replace")
    try:
        message = json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = said or error.reason
    return escaped(" ".join(str(message).split()))
