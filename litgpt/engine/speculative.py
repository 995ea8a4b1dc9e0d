"""Speculative decoding: a small model drafts some tokens, the large one checks them all in one forward pass
(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192).

Greedy answers are those of the large model alone; sampled ones have its distribution, though not the same draws.

n: running requests, K: drafted tokens, V: vocabulary of the large model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.engine.engine import Engine, nothing_left, restricted
from litgpt.engine.memory import headroom_bytes
from litgpt.engine.request import Request
from litgpt.engine.sampling import measure, pick, probabilities
from litgpt.errors import LitGPTError
from litgpt.kernels.linear import use_fast_linear
from litgpt.model import GPT
from litgpt.model.cache import Span


@dataclass
class Drafts:
    """What the small model proposes to go on with."""

    tokens: Tensor
    """`(n, K)`."""
    probs: list[list[Tensor]]
    """The distribution that each token of each row was drawn from, `(V,)`; none for greedy rows."""
    counts: list[int]
    """How many tokens of each row are to be checked; what follows them is only padding."""


class SpeculativeEngine(Engine):
    """An engine whose running requests may get several tokens a step.

    Requests with penalties, biases or a grammar get one, because what they change depends on the tokens before.

    Args:
        model: The large model.
        draft: The small one, of the same tokenizer, on the same device.
        k: Tokens to draft for each request and step.
        others: As `Engine`.

    Raises:
        LitGPTError: As `Engine`; or the two models don't fit each other.
    """

    def __init__(
        self,
        model: GPT,
        draft: GPT,
        k: int = 3,
        slots: int = 1,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        chunk: int = 512,
    ) -> None:
        if k < 1:
            raise LitGPTError(f"speculative_k is {k}; it must be 1 or more.")
        if draft.config.vocab_size != model.config.vocab_size:
            raise LitGPTError(
                f"The draft model's vocabulary of {draft.config.vocab_size} tokens is not the target's of"
                f" {model.config.vocab_size}; both need the same tokenizer."
            )
        if model.config.linear_attention is not None or draft.config.linear_attention is not None:
            raise LitGPTError(
                "Wrong guesses are taken back, and the state of linear attention can't go back; use no draft model."
            )
        shorter = min(model.max_seq_length, draft.max_seq_length)
        self.draft = draft
        self.tokens_per_step = k + 1
        super().__init__(model, slots, shorter if length is None else min(length, shorter), dtype, chunk)
        self.k = k
        self.n_drafted = 0
        """Tokens that were drafted and checked so far."""
        self.n_accepted = 0
        """Those of them that were right."""
        if k >= self.max_pass_tokens:
            raise LitGPTError(f"speculative_k is {k}; it must be less than {self.max_pass_tokens}.")
        use_fast_linear(draft, headroom_bytes(self.device), slots)
        self._draft_cache = draft.new_cache(slots, self.length, self.dtype, self.max_pass_tokens)
        self._draft_lengths: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        """How many tokens of a request the draft's cache holds."""

    @property
    def cache_nbytes(self) -> int:
        """Bytes that the KV caches of both models take."""
        return super().cache_nbytes + self.draft.cache_nbytes(self.slots, self.length, self.dtype, self.max_pass_tokens)

    @property
    def acceptance(self) -> str:
        """How good the drafts were, in a sentence."""
        return f"Acceptance rate: {self.n_accepted / max(1, self.n_drafted):.0%} of {self.n_drafted} drafted tokens"

    def _step(self) -> None:
        self._release()
        running = [request for request in self._active if request.output]
        if running:
            self._speculate(running)
        self._answer(len(running), self._prefill())
        self._release()

    def _speculate(self, running: list[Request]) -> None:
        """Gives every running request one token, and as many more as the draft guessed right."""
        wanted = [self._n_drafts(slot, request) for slot, request in enumerate(running)]
        widest = max(wanted)
        if all(len(self._cached_tokens[slot]) + 1 + widest <= self.length for slot in range(len(running))):
            self._advance(0, running, wanted)
            return
        for slot, request in enumerate(running):  # near the end of a context there is no room for padding
            self._advance(slot, [request], [wanted[slot]])

    def _n_drafts(self, slot: int, request: Request) -> int:
        """How many tokens to draft for a request; this doesn't depend on others, so neither do its draws."""
        if request.sampling.penalizing or request.sampling.grammar is not None:
            return 0
        room = self.length - len(self._cached_tokens[slot]) - 1
        return max(0, min(self.k, room, request.limit - request.n_generated - 1))

    def _advance(self, slot: int, requests: list[Request], counts: list[int]) -> None:
        """One round for the requests in the slots from `slot` on."""
        drafts = self._propose(slot, requests, counts)
        last = torch.tensor([[request.output[-1]] for request in requests], device=self.device)  # (n, 1)
        rows = slice(slot, slot + len(requests))
        starts = [len(filled) for filled in self._cached_tokens[rows]]
        checked = torch.cat((last, drafts.tokens), dim=1)  # (n, K + 1)
        scores = self._scores(self.model.hidden(checked, span=Span(self.cache, rows, starts)))  # (n, K + 1, V)
        self.error = None
        for row, request in enumerate(requests):
            guesses = drafts.tokens[row, : counts[row]].tolist()
            tokens = self._verify(request, scores[row], guesses, drafts.probs[row])
            self._cached_tokens[slot + row].extend([request.output[-1], *tokens[:-1]])
            before = len(request.prompt) + len(request.output)
            if request in self._draft_lengths:
                self._draft_lengths[request] = min(before + len(tokens) - 1, self._draft_lengths[request])
            self.n_drafted += len(guesses)
            self.n_accepted += len(tokens) - 1
            self._accept(request, tokens, scores[row])

    def _accept(self, request: Request, tokens: Sequence[int], scores: Tensor) -> None:
        """Hands a request its tokens; `scores` `(K + 1, V)` are the large model's of each."""
        noted = request.sampling.logprobs is not None
        for token, row in zip(tokens, scores, strict=False):
            if not request.done:
                request.accept(token, measure(row[None], [token], [request.sampling])[0] if noted else None)
        if request.on_update is not None and not request.done:
            request.on_update()

    # -- the draft's side

    def _propose(self, slot: int, requests: list[Request], counts: list[int]) -> Drafts:
        """What the draft would say next."""
        n, longest = len(requests), max(counts)
        drafts = Drafts(torch.empty((n, 0), dtype=torch.long, device=self.device), [[] for _ in requests], counts)
        if not longest:
            return drafts
        self._catch_up(slot, requests)
        sequences = [[*request.prompt[-1:], *request.output][-2:] for request in requests]
        starts = [len(request.prompt) + len(request.output) - 2 for request in requests]
        rows = slice(slot, slot + n)
        # Of what was accepted in the last round the draft may lack two tokens or one; two for all is one batch.
        idx = torch.tensor(sequences, device=self.device)  # (n, 2)
        for number in range(longest):
            hidden = self.draft.hidden(idx, span=Span(self._draft_cache, rows, starts))[:, -1]
            starts = [start + idx.size(1) for start in starts]
            idx = self._guess(hidden, requests, drafts, number)[:, None]  # (n, 1)
            drafts.tokens = torch.cat((drafts.tokens, idx), dim=1)
        for request, start in zip(requests, starts, strict=True):
            self._draft_lengths[request] = start
        return drafts

    def _guess(self, hidden: Tensor, requests: list[Request], drafts: Drafts, number: int) -> Tensor:
        """Token `number` of each draft, `(n,)`, from the draft's hidden states `(n, C)`."""
        scores = self.draft.head(hidden).float()
        V = self.model.transformer.wte.num_embeddings  # the draft may have been padded to more, which we can't say
        scores = F.pad(scores[:, :V], (0, max(0, V - scores.size(1))), value=-torch.inf)
        guesses = scores.argmax(dim=-1)
        for row, request in enumerate(requests):
            if number < drafts.counts[row] and not request.sampling.greedy:
                probs = probabilities(scores[row][None], request.sampling)  # (1, V)
                guesses[row] = pick(probs, [request.draw()])[0]
                drafts.probs[row].append(probs[0])
        return guesses

    def _catch_up(self, slot: int, requests: list[Request]) -> None:
        """Lets the draft read all of each request but its last two tokens."""
        for row, request in enumerate(requests, slot):
            known, upto = self._draft_lengths.get(request, 0), len(request.prompt) + len(request.output) - 2
            unread = [*request.prompt, *request.output][known:upto] if known < upto else []
            for at in range(0, len(unread), self.chunk):
                idx = torch.tensor([unread[at : at + self.chunk]], device=self.device)
                self.draft.hidden(idx, span=Span(self._draft_cache, slice(row, row + 1), [known + at]))
            self._draft_lengths[request] = max(known, upto)

    # -- the large model's side

    def _verify(self, request: Request, scores: Tensor, guesses: list[int], probs: list[Tensor]) -> list[int]:
        """The guesses that hold, in order, and one token of the large model's own, by its scores `(K + 1, V)`."""
        if request.sampling.penalizing or request.sampling.grammar is not None:
            return [self._pick_undrafted(request, scores[0])]
        if request.sampling.greedy:
            best = scores.argmax(dim=-1).tolist()
            right = next((i for i, guess in enumerate(guesses) if guess != best[i]), len(guesses))
            return best[: right + 1]
        wanted = probabilities(scores[: len(guesses) + 1], request.sampling)  # (K + 1, V)
        for number, guess in enumerate(guesses):
            if request.draw() * float(probs[number][guess]) >= float(wanted[number, guess]):
                missed = (wanted[number] - probs[number]).clamp(min=0)  # what the draft says too seldom
                missed = missed if bool(missed.any()) else wanted[number]
                return [*guesses[:number], int(pick(missed[None], [request.draw()]))]
        return [*guesses, int(pick(wanted[-1:], [request.draw()]))]

    def _pick_undrafted(self, request: Request, scores: Tensor) -> int:
        """The next token of a request without drafts, by the large model's scores `(V,)`."""
        scores = scores.clone()
        self._shape(scores, request)
        if restricted(request) and not bool(scores.amax().isfinite()):
            raise nothing_left()
        if request.sampling.greedy:
            return int(scores.argmax())
        return int(pick(probabilities(scores[None], request.sampling), [request.draw()]))

    def _swap(self, a: int, b: int) -> None:
        super()._swap(a, b)
        if a != b:
            self._draft_cache.swap(a, b, self.length)
