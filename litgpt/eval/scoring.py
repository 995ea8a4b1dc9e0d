"""How likely a model holds texts that are there already: many at once, what they begin with alike computed once.

Sorted, texts that begin alike lie beside each other. A *cluster* is a run of them with a long common beginning, the
*root* (a task's examples, say). In it, a *group* is a run with a longer one, the *stem* (a question); the rest of each
text is its *leaf* (an answer). Roots and stems go through the model once, and leaves together. Texts that share nothing
are packed one after another, without padding.

B: rows of a pass, T: tokens, C: `n_embd`, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from litgpt.engine.memory import check_cache_fits, headroom_bytes
from litgpt.engine.request import common_prefix
from litgpt.errors import LitGPTError, UnsupportedError, check_token_ids
from litgpt.kernels.linear import use_fast_linear
from litgpt.kernels.sdpa import varying_shapes
from litgpt.model import GPT
from litgpt.model.cache import KVCache, Span
from litgpt.runtime import free_memory

CHUNK = 512
"""Tokens of one row that go through the model at once, at most."""
ROWS = 32
"""Rows of one pass, at most, unless the caller says otherwise."""
PASS_TOKENS = {"cpu": 1024}
OTHER_PASS_TOKENS = 8192
"""Tokens of one pass, padding included, by the kind of device; a longer text has a pass of its own."""
MIN_ROOT, MIN_STEM = 32, 4
"""Tokens that are worth a pass of their own."""
SCORES_BYTES = 64 * 2**20
"""Memory for the scores of some positions, float32 `(…, V)`."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Score:
    """How likely a model holds a continuation."""

    logprob: float
    """Of all its tokens after each other, nats."""
    greedy: bool
    """Whether each is the token that the model holds most likely."""


@dataclass
class _Text:
    """What goes through the model once, and what is asked of its last positions."""

    tokens: tuple[int, ...]
    asked: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """The numbers of the pairs, and their continuations."""

    @property
    def start(self) -> int:
        """The first position whose score is asked for."""
        return len(self.tokens) - max(len(continuation) for _, continuation in self.asked)


@dataclass
class _Group:
    """Texts with a stem of so many tokens."""

    stem: int
    texts: list[_Text]


class Scorer:
    """Scores continuations of contexts.

    Args:
        model: The model; its weights say where computation happens.
        dtype: What is computed in; None: the weights' own. Another than theirs means autocast.
        rows: Texts that go through the model together, at most; fewer take less memory.
    """

    def __init__(self, model: GPT, dtype: torch.dtype | None = None, rows: int = ROWS) -> None:
        weight = model.transformer.wte.weight
        self.model, self.rows, self.device = model, rows, weight.device
        self.dtype = dtype or weight.dtype
        self.pass_tokens = PASS_TOKENS.get(self.device.type, OTHER_PASS_TOKENS)
        use_fast_linear(model, headroom_bytes(self.device), CHUNK)

    def score(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Callable[[int], None] = lambda scored: None,
    ) -> list[Score]:
        """The scores of continuations, each after its context.

        Args:
            pairs: Token ids of context and continuation, at least one each. Where both are longer than the model's
                context and one token, the first tokens of the context are left out.
            progress: Called with the number of pairs that were scored, again and again.

        Raises:
            LitGPTError: A continuation alone is longer than the model's context, or a pair makes no sense.
        """
        scores: list[Score | None] = [None] * len(pairs)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), varying_shapes(), self._autocast():
                for texts, hidden in self._passes(self._texts(pairs)):
                    self._measure(texts, hidden, scores)
                    progress(sum(len(text.asked) for text in texts))
        finally:
            self.model.train(training)
        return [score for score in scores if score is not None]

    def hidden_states(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """The number of each text, given as token ids, and the hidden states of all its tokens, `(T, C)`; the order is
        that of the work. None is empty or longer than the model's context."""
        numbered = [_Text(tuple(tokens), [(number, ())]) for number, tokens in enumerate(texts)]
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), varying_shapes(), self._autocast():
                for some, _ in self._by_extent(numbered):
                    for done, hidden in self._packed(some):
                        yield from ((text.asked[0][0], states) for text, states in zip(done, hidden, strict=True))
        finally:
            self.model.train(training)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.model.computes_in(self.dtype):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _texts(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Text]:
        """What has to go through the model: pairs that differ in their last token alone are one text."""
        longest = self.model.max_seq_length
        texts: dict[tuple[int, ...], _Text] = {}
        for number, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                raise LitGPTError(f"Pair {number} has an empty context or continuation; give at least one token each.")
            if len(continuation) > longest:
                raise UnsupportedError(
                    f"A continuation of {len(continuation)} tokens is longer than the model's context of {longest};"
                    " score it in parts."
                )
            whole = (*context, *continuation)
            check_token_ids(whole, self.model.transformer.wte.num_embeddings, "A text")
            tokens = whole[-(longest + 1) :][:-1]
            texts.setdefault(tokens, _Text(tokens)).asked.append((number, tuple(continuation)))
        return list(texts.values())

    # -- the order of the work

    def _passes(self, texts: list[_Text]) -> Iterator[tuple[list[_Text], list[Tensor]]]:
        """Texts, and the hidden states of the last positions of each, as many as are asked for or more, `(T, C)`."""
        for some, limit in self._by_extent(texts):
            alone: list[_Text] = []
            for root, groups in _clusters(sorted(some, key=lambda text: text.tokens)):
                if root == 0 and len(groups) == 1 and len(groups[0].texts) == 1:
                    alone += groups[0].texts
                else:
                    yield from self._cluster(root, groups, limit)
            yield from self._packed(alone)

    def _by_extent(self, texts: list[_Text]) -> Iterator[tuple[list[_Text], int]]:
        """Texts that may be computed together, and the position that no pass of theirs may go beyond: some rotary
        embeddings are others in sequences that are longer than the model was first trained with."""
        borders = sorted({int(min(rope.original, self.model.max_seq_length)) for rope in self.model.ropes})
        least = 0
        for border in dict.fromkeys([*borders, self.model.max_seq_length]):
            some = [text for text in texts if least < len(text.tokens) <= border]
            least = border
            if some:
                yield some, border

    def _packed(self, texts: list[_Text]) -> Iterator[tuple[list[_Text], list[Tensor]]]:
        """Each text whole, several in one pass."""
        for some in _portions(sorted(texts, key=lambda text: -len(text.tokens)), self._fits_packed):
            lengths = [len(text.tokens) for text in some]
            idx = torch.tensor([[token for text in some for token in text.tokens]], device=self.device)
            hidden = self.model.hidden(idx, lengths)[0].split(lengths)
            yield some, list(hidden)

    def _fits_packed(self, texts: list[_Text]) -> bool:
        return len(texts) <= self.rows and sum(len(text.tokens) for text in texts) <= self.pass_tokens

    def _cluster(self, root: int, groups: list[_Group], limit: int) -> Iterator[tuple[list[_Text], list[Tensor]]]:
        """The texts of groups, by way of a cache: the root in its first slot, stems in the next, leaves behind these.
        A stem or root that has one text only is a part of its leaf."""
        groups.sort(key=lambda group: -group.stem)
        longest = max(len(text.tokens) for group in groups for text in group.texts)
        length = min(limit, longest + CHUNK)  # of padding
        slots = self._slots(length)
        cache = self.model.new_cache(slots, length, self.dtype, CHUNK)
        if root:
            self._extend(cache, 0, [(0, groups[0].texts[0].tokens[:root])])

        def fits(some: list[_Group]) -> bool:
            stems = [(root, group.stem - root) for group in some]
            few = len(some) <= (slots - 1) // 2 and self._few(stems)
            return few and _padded_end(stems) <= length

        for some in _portions(groups, fits):
            several = [group for group in some if len(group.texts) > 1]
            places = dict(zip(map(id, several), self._stems(cache, root, several), strict=True))
            leaves = [
                (text, places.get(id(group), 0), group.stem if id(group) in places else root)
                for group in some
                for text in group.texts
            ]
            yield from self._leaves(cache, 1 + len(several), leaves)

    def _slots(self, length: int) -> int:
        """How many slots there is use and memory for: one, and as many for stems as for leaves."""
        each = self.model.cache_nbytes(1, length, self.dtype, CHUNK)
        places = set(self.model.layer_devices)
        free = [free_memory(place) for place in places]
        slots = 1 + 2 * self.rows
        if None not in free:
            slots = max(3, min(slots, sum(nbytes or 0 for nbytes in free) // 2 // each))
            check_cache_fits(slots * each, slots, length, places)
        return slots

    def _few(self, rows: list[tuple[int, int]]) -> bool:
        """Whether one pass takes so many rows of so many known and so many new tokens."""
        return len(rows) * min(CHUNK, max(new for _, new in rows)) <= self.pass_tokens

    def _stems(self, cache: KVCache, root: int, groups: list[_Group]) -> list[int]:
        """Computes stems; the slot of each."""
        order = sorted(range(len(groups)), key=lambda number: -groups[number].stem)
        slots = [0] * len(groups)
        for slot, number in enumerate(order, 1):
            if root:
                cache.copy(0, slot, root)
            slots[number] = slot
        rows = [(root, groups[number].texts[0].tokens[root : groups[number].stem]) for number in order]
        if not rows:
            return []
        if cache.rewindable:
            self._extend(cache, 1, rows)
        else:  # padding would become part of a state
            for slot, row in enumerate(rows, 1):
                self._extend(cache, slot, [row])
        return slots

    def _leaves(
        self, cache: KVCache, first: int, leaves: list[tuple[_Text, int, int]]
    ) -> Iterator[tuple[list[_Text], list[Tensor]]]:
        """Computes leaves: texts, each with the slot that holds its first tokens, and how many these are."""

        def fits(some: list[tuple[_Text, int, int]]) -> bool:
            rows = [(known, len(text.tokens) - known) for text, _, known in some]
            few = len(some) <= min(self.rows, cache.slots - first) and self._few(rows)
            return few and _padded_end(rows) <= cache.length

        for some in _portions(sorted(leaves, key=lambda leaf: leaf[2] - len(leaf[0].tokens)), fits):
            for slot, (_, source, known) in enumerate(some, first):
                if known:
                    cache.copy(source, slot, known)
            rows = [(known, text.tokens[known:]) for text, _, known in some]
            yield [text for text, _, _ in some], self._extend(cache, first, rows)

    def _extend(self, cache: KVCache, first: int, rows: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Feeds tokens to slots from `first` on, those with most of them first.

        Args:
            cache: Where all that precedes them is.
            first: The slot of the first row.
            rows: How many tokens of each are in its slot, and those that follow.

        Returns:
            The hidden states of these, `(T, C)` each.
        """
        found: list[list[Tensor]] = [[] for _ in rows]
        for at in range(0, max(len(tokens) for _, tokens in rows), CHUNK):
            parts = [tokens[at : at + CHUNK] for _, tokens in rows if len(tokens) > at]
            longest = len(parts[0])
            idx = torch.tensor([[*part, *[0] * (longest - len(part))] for part in parts], device=self.device)  # (B, T)
            starts = [known + at for known, _ in rows[: len(parts)]]
            span = Span(cache, slice(first, first + len(parts)), starts)
            for row, (part, states) in enumerate(zip(parts, self.model.hidden(idx, span=span), strict=True)):
                found[row].append(states[: len(part)])
        return [torch.cat(states) for states in found]

    # -- what is asked

    def _measure(self, texts: list[_Text], hidden: list[Tensor], scores: list[Score | None]) -> None:
        """Notes the scores of pairs, by the hidden states of their texts' last positions, `(T, C)` each."""
        rows: list[Tensor] = []
        targets: list[int] = []
        owners: list[tuple[int, int]] = []
        for text, states in zip(texts, hidden, strict=True):
            for number, continuation in text.asked:
                rows.append(states[-len(continuation) :])
                targets += continuation
                owners.append((number, len(continuation)))
        wanted = torch.tensor(targets, device=self.device)
        logprobs, best = self._logprobs(torch.cat(rows), wanted)
        at = 0
        for number, n in owners:
            scores[number] = Score(sum(logprobs[at : at + n]), all(best[at : at + n]))
            at += n

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
        """The log-probability of each target `(N,)` by the hidden states `(N, C)`, and whether it is the best."""
        logprobs: list[float] = []
        best: list[bool] = []
        vocabulary = self.model.config.padded_vocab_size or 1
        few = max(1, SCORES_BYTES // (4 * vocabulary))
        for rows, wanted in zip(hidden.split(few), targets.split(few), strict=True):
            logits = self.model.head(rows).float()  # (N', V)
            own = logits.gather(1, wanted[:, None])[:, 0]
            found = own - logits.logsumexp(dim=-1)
            if not bool(found.isfinite().all()):
                name = str(self.dtype).removeprefix("torch.")
                raise LitGPTError(f"The model's scores are not finite numbers in {name}; try another precision.")
            logprobs += found.tolist()
            best += (logits.argmax(dim=-1) == wanted).tolist()
        return logprobs, best


def _portions(items: list[Item], fits: Callable[[list[Item]], bool]) -> Iterator[list[Item]]:
    """The items in portions as large as fit, of at least one."""
    some: list[Item] = []
    for item in items:
        if some and not fits([*some, item]):
            yield some
            some = []
        some.append(item)
    if some:
        yield some


def _padded_end(rows: list[tuple[int, int]]) -> int:
    """One past the last position that rows of so many known and so many new tokens can reach together."""
    return max(known for known, _ in rows) + max(new for _, new in rows)


def _clusters(texts: list[_Text]) -> Iterator[tuple[int, list[_Group]]]:
    """Sorted texts by what they share: the length of the root, and the groups."""
    # A stem ends where scores are asked for at the latest, and so does what two texts are said to share.
    shared = [min(common_prefix(one.tokens, other.tokens), one.start, other.start) for one, other in pairwise(texts)]
    begin = 0
    for end in range(1, len(texts) + 1):
        if end == len(texts) or shared[end - 1] < MIN_ROOT:
            some, between = texts[begin:end], shared[begin : end - 1]
            yield _best_root(some, between)
            begin = end


def _best_root(texts: list[_Text], shared: list[int]) -> tuple[int, list[_Group]]:
    """Groups by the root that all texts share, or without one where that costs no more."""
    root = min(shared, default=0)
    with_root, without = (list(_groups(texts, shared, at)) for at in (root, 0))
    if len(with_root) < 2 or root + _cost(with_root, root) >= _cost(without, 0):
        return 0, without
    return root, with_root


def _groups(texts: list[_Text], shared: list[int], root: int) -> Iterator[_Group]:
    """Runs of texts, each with a stem beyond the root where that makes less work."""
    group = _Group(texts[0].start, [texts[0]])
    for text, common in zip(texts[1:], shared, strict=True):
        n, stem = len(group.texts), min(group.stem, common)
        if stem - root >= MIN_STEM and n * (stem - root) > (n - 1) * (group.stem - root):
            group = _Group(stem, [*group.texts, text])
        else:
            yield group
            group = _Group(text.start, [text])
    yield group


def _cost(groups: list[_Group], root: int) -> int:
    """Tokens that go through the model."""
    return sum(
        group.stem - root + sum(len(text.tokens) - group.stem for text in group.texts)
        if len(group.texts) > 1
        else len(group.texts[0].tokens) - root
        for group in groups
    )
