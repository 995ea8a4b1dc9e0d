"""The one generation engine: requests share one model and one KV cache, and each joins and leaves the batch on its own.

n: running requests, T: tokens, C: `n_embd`, V: vocabulary.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from litgpt.engine.compiled import CompiledStep
from litgpt.engine.memory import check_cache_fits, headroom_bytes
from litgpt.engine.request import Request, StopMatcher, check_tokens, common_prefix
from litgpt.engine.sampling import Logprob, Sampling, choose, measure, penalize
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.kernels.linear import use_fast_linear
from litgpt.kernels.sdpa import varying_shapes
from litgpt.model import GPT
from litgpt.model.cache import Span
from litgpt.peft.adapter_bank import AdapterBank

WINDOW_SLACK = 16
"""Tokens beyond its window that a layer with a sliding one keeps at least: so far can a sequence go back."""
FIXED_CHUNKS = {"cpu": 64}
OTHER_FIXED_CHUNK = 256
"""Prompt tokens that a deterministic engine processes at once, by the kind of device: what prompts share is computed
once in steps of so many. Fewer take longer where one pass could take more at hardly any cost."""


def nothing_left() -> LitGPTError:
    """What a request ends with that leaves itself no token to choose."""
    return LitGPTError("The request's penalties, biases and grammar leave no token to choose.")


def restricted(request: Request) -> bool:
    """Whether a request changes scores, so that no token may be left to choose."""
    return request.sampling.penalizing or bool(request.sampling.grammar)


class Engine:
    """Continues prompts: `submit` one, then iterate over the request it returns.

    Requests beyond `slots` wait in line. A client that iterates drives the engine, all its requests together; after
    `start`, a thread does, and `submit` and iteration may happen in any thread.

    Args:
        model: The model; its weights say where computation happens.
        slots: Requests that run at the same time.
        length: Tokens that a prompt and its answer may have together; None: the model's context.
        dtype: What is computed in; None: the weights' own. Another than theirs means autocast.
        chunk: Prompt tokens that are processed between two steps of the running requests.
        compile: Compile the step that gives running requests their next token; see `CompiledStep`.
        deterministic: An answer depends, to the bit, on nothing but its request: not on what else runs, nor on what the
            cache knows. Sums of floating-point numbers depend on their order, and that of a product's sums on how many
            rows are multiplied. So each request is computed as if it were alone, and prompts in parts that begin at
            multiples of a fixed number of tokens; only whole parts are shared with later prompts.

    Raises:
        LitGPTError: The KV cache does not fit into memory, or `length` not into the model's context; or what is
            compiled, for several requests at once, is to be deterministic.
    """

    tokens_per_step = 1
    """That are computed at once of each running request."""

    def __init__(
        self,
        model: GPT,
        slots: int = 1,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        chunk: int = 512,
        compile: bool = False,
        deterministic: bool = False,
    ) -> None:
        if compile and deterministic:
            raise LitGPTError("--compile true computes several answers at once; leave it out, or --deterministic.")
        length = model.max_seq_length if length is None else length
        if slots < 1 or chunk < 1 or not 0 < length <= model.max_seq_length:
            raise LitGPTError(
                f"An engine of {slots} slots x {length} tokens, {chunk} a chunk, can't be: each is at least 1, and the"
                f" model's context is {model.max_seq_length} tokens."
            )
        weight = model.transformer.wte.weight  # the one that is never quantized
        self.model = model
        self.slots = slots
        self.length = length
        self.dtype = dtype or weight.dtype
        self.device = weight.device
        self.chunk = chunk
        self.deterministic = deterministic
        self._fixed_chunk = min(chunk, FIXED_CHUNKS.get(self.device.type, OTHER_FIXED_CHUNK))
        self.max_pass_tokens = max(chunk, WINDOW_SLACK)
        """Of one sequence in one forward pass, at most."""
        model.train(model.training)  # what was added to the model since, too
        rows = 1 if deterministic else slots * self.tokens_per_step
        use_fast_linear(model, headroom_bytes(self.device), rows)
        check_cache_fits(self.cache_nbytes, slots, length, model.layer_devices)
        self.cache = model.new_cache(slots, length, self.dtype, self.max_pass_tokens)
        self._compiled = CompiledStep(model, self.cache, self.device) if compile else None
        self.error: BaseException | None = None
        """What the last step failed with; None: it worked."""
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        """Request number i is in slot i; the last one's prompt may be processed in part only."""
        self._cached_tokens: list[list[int]] = [[] for _ in range(slots)]
        """The tokens whose keys and values are in each slot; they stay, for later prompts that begin alike."""
        self._prefilled = [0] * slots
        """How many of these were computed as a prompt's, in chunks; the others one by one, which rounds differently."""
        self.bank: AdapterBank | None = None
        """Adapters that requests may choose among."""
        self.step_began: float | None = None
        """When the step that is being taken began, in seconds of `time.perf_counter`; None: none is."""
        self._adapters: list[str | None] = [None] * slots
        """The adapter that the keys and values in each slot were computed with."""
        self._pending_work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stepping = threading.RLock()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    # -- the clients' side

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._active or self._waiting or self._pending_work)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def n_cached(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return sum(map(len, self._cached_tokens))

    @property
    def cache_nbytes(self) -> int:
        """Bytes that the KV cache takes."""
        return self.model.cache_nbytes(self.slots, self.length, self.dtype, self.max_pass_tokens)

    @property
    def n_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that have a slot."""
        return len(self._active)

    def submit(
        self,
        prompt: Sequence[int] | Tensor,
        sampling: Sampling | None = None,
        stop: Sequence[int | Sequence[int]] = (),
        max_new_tokens: int | None = None,
        on_update: Callable[[], None] | None = None,
        adapter: str | None = None,
        forced: Sequence[int] = (),
    ) -> Request:
        """Puts a prompt in line.

        Args:
            prompt: Token ids, `(T,)`.
            sampling: How tokens are drawn.
            stop: Token ids and sequences of token ids that end the answer; they are not part of it.
            max_new_tokens: The most tokens to generate; None, or more than fit: until `length` is reached.
            on_update: Called, in the thread that drives the engine, when the request got its slot, has new tokens or is
                done.
            adapter: The adapter of the bank that it is computed with; None: the model alone.
            forced: What it answers, whatever it would have chosen: with `sampling.logprobs` it tells how likely the
                model holds that, computed as if it answered so. Empty: it chooses.

        Raises:
            LitGPTError: The prompt is empty, too long or not of this vocabulary, or another argument makes no sense.
        """
        sampling = sampling or Sampling()
        tokens = check_tokens(prompt, sampling, self.model, self.length)
        if max_new_tokens is not None and not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise LitGPTError(f"max_new_tokens is {quoted(max_new_tokens)}; it must be 1 or more.")
        room = self.length - len(tokens) + 1  # the last token generated is not fed back
        if forced and (self.tokens_per_step > 1 or len(forced) > room):
            raise LitGPTError(f"An answer of {len(forced)} tokens can't be forced here; there is room for {room}.")
        limit = min(len(forced) or max_new_tokens or room, room)
        if adapter is not None and (self.bank is None or adapter not in self.bank.names):
            near = closest(str(adapter), self.bank.names if self.bank else ())
            raise LitGPTError(f"There is no adapter {quoted(adapter)} beside this model.{near}")
        request = Request(
            tokens, sampling, StopMatcher(stop), limit, self.advance, self.wake, on_update, self.model.ranks
        )
        request.adapter, request.forced = adapter, tuple(forced)
        with self._changed:
            if self._stopping:
                raise LitGPTError("The engine has been stopped; it takes no more requests.")
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    def run_between_steps(self, work: Callable[[], Any]) -> Future[Any]:
        """Calls `work` between two steps, while the model is free, in the thread of `start`, which has to run."""
        future: Future[Any] = Future()
        with self._changed:
            if self._stopping:
                raise LitGPTError("The engine has been stopped; it takes no more work.")
            self._pending_work.append((work, future))
            self._changed.notify_all()
        return future

    def using_adapters(self, adapters: Sequence[str | None]) -> AbstractContextManager[None]:
        """While inside, row `b` of what the model computes is computed with the adapter `adapters[b]`."""
        return nullcontext() if self.bank is None else self.bank.using(adapters)

    def wake(self) -> None:
        """Lets the threads that wait for the engine, its own too, look again."""
        with self._changed:
            self._changed.notify_all()

    def advance(self, request: Request) -> None:
        """Returns when `request` has an update; without a thread, does the work for it."""
        if self._thread is not None:
            with self._changed:
                self._changed.wait_for(lambda: request.has_update)
            return
        with self._stepping:
            if not request.has_update:
                self.step()

    def forget(self) -> None:
        """Drops what it knows of earlier prompts; needed after the model's weights changed. Not while requests run."""
        with self._stepping:
            if self._active:
                raise LitGPTError("The weights can't change while requests run; let them finish or cancel them.")
            self._cached_tokens = [[] for _ in range(self.slots)]

    # -- a thread of its own

    def start(self) -> None:
        """Runs the engine in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancels what is left and ends the thread."""
        self._stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
        with self._stepping:
            for request in (*self._active, *self._waiting):
                request.cancel()
            for _, future in self._pending_work:
                future.cancel()

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self.busy or self._stopping)
            with suppress(Exception):  # `error` and the requests carry it to the clients; later requests may work
                self.step()

    # -- the work

    def step(self) -> None:
        """Gives every running request its next token, and processes at most `chunk` tokens of new prompts.

        Whatever goes wrong ends the running requests with that error; the engine can go on.
        """
        with self._stepping:
            training = self.model.training
            if training:  # to ask every module of a large model takes as long as a layer's work
                self.model.eval()
            self.step_began = perf_counter()
            try:
                with torch.no_grad(), varying_shapes(), self._autocast():
                    self._run_pending_work()
                    self._step()
            except BaseException as error:
                self.error = error
                for request in self._active:
                    if not request.done:
                        request.finish("error", error)
                self._active.clear()
                self._cached_tokens = [[] for _ in range(self.slots)]
                raise
            finally:
                if training:
                    self.model.train()
                self.step_began = None
                self.wake()

    def _run_pending_work(self) -> None:
        """One piece of work from `run_between_steps`, if there is any; its future carries what goes wrong."""
        if self._pending_work:
            work, future = self._pending_work.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.model.computes_in(self.dtype):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _step(self) -> None:
        self._release()
        hidden = [*self._decode(), *self._prefill()]  # of the requests in the first slots, `(1, C)` each or several
        self._answer(0, hidden)
        self._release()

    def _answer(self, slot: int, hidden: list[Tensor]) -> None:
        """Gives the requests from `slot` on their next token, by their hidden states, `(1, C)` each or several."""
        if not hidden:
            return
        rows = torch.cat(hidden)  # (n, C)
        requests = self._active[slot : slot + rows.size(0)]
        chosen = self._choose(requests, rows)
        self.error = None  # known before the first client hears of a token
        for request, (token, logprob) in zip(requests, chosen, strict=True):
            request.accept(token, logprob)
            if request.on_update is not None and not request.done:
                request.on_update()

    def _decode(self) -> list[Tensor]:
        """Feeds each running request its last token; their hidden states `(n, C)`."""
        running = [request for request in self._active if request.output]
        if not running:
            return []
        tokens = [request.output[-1] for request in running]
        starts = [len(self._cached_tokens[slot]) for slot in range(len(running))]
        adapters = [request.adapter for request in running]
        if self.deterministic:
            hidden = self._decode_apart(tokens, starts, adapters)  # (n, C)
        elif self._compiled is not None and not any(adapters):
            hidden = self._compiled(tokens, starts, self._headroom(len(running)))
        else:
            idx = torch.tensor(tokens, device=self.device)[:, None]  # (n, 1)
            with self.using_adapters(adapters):
                hidden = self.model.hidden(idx, span=Span(self.cache, slice(0, len(running)), starts))[:, 0]
        for slot, token in enumerate(tokens):
            self._cached_tokens[slot].append(token)
        return [hidden]

    def _decode_apart(self, tokens: list[int], starts: list[int], adapters: list[str | None]) -> Tensor:
        """As `_decode`, each request as if it were alone; those with the same adapter layer by layer."""
        hidden: dict[int, Tensor] = {}  # (1, C) each
        for adapter in dict.fromkeys(adapters):
            slots = [slot for slot, other in enumerate(adapters) if other == adapter]
            rows = [torch.tensor([[tokens[slot]]], device=self.device) for slot in slots]
            spans = [Span(self.cache, slice(slot, slot + 1), [starts[slot]]) for slot in slots]
            with self.using_adapters([adapter]):
                found = self.model.hidden_apart(rows, spans)
            hidden.update((slot, row[:, -1]) for slot, row in zip(slots, found, strict=True))
        return torch.cat([hidden[slot] for slot in range(len(tokens))])

    def _headroom(self, first: int) -> list[int]:
        """Of the slots from `first` on: the position after what is known there, which a row without a request may
        overwrite."""
        for slot in range(first, self.slots):
            del self._cached_tokens[slot][self.length - 1 :]
            self.cache.filled_ends[slot] = max(self.cache.filled_ends[slot], len(self._cached_tokens[slot]) + 1)
        return [len(filled) for filled in self._cached_tokens[first:]]

    def _prefill(self) -> list[Tensor]:
        """Feeds prompts, `chunk` tokens in all; the last hidden state `(1, C)` of each that is through."""
        through: list[Tensor] = []
        budget = self.chunk
        while budget > 0 and (request := self._next_prompt()):
            slot = len(self._active) - 1
            start = len(self._cached_tokens[slot])
            end = start + budget if not self.deterministic else start - start % self._fixed_chunk + self._fixed_chunk
            part = request.prompt[start:end]
            idx = torch.tensor([part], device=self.device)  # (1, T)
            with self.using_adapters([request.adapter]):
                hidden = self.model.hidden(idx, span=Span(self.cache, slice(slot, slot + 1), [start]))  # (1, T, C)
            self._cached_tokens[slot].extend(part)
            self._prefilled[slot] = start + len(part)
            budget -= len(part)
            if len(self._cached_tokens[slot]) == len(request.prompt):
                through.append(hidden[:, -1])
        return through

    def _next_prompt(self) -> Request | None:
        """The request whose prompt is next to be processed, in the last slot in use; None: none, or no slot is free."""
        if self._active and len(self._cached_tokens[len(self._active) - 1]) < len(self._active[-1].prompt):
            return self._active[-1]
        while self._waiting and len(self._active) < self.slots:
            request = self._waiting.popleft()
            if request.done:  # cancelled in line
                continue
            self._active.append(request)  # before anything that may fail: active requests end with that error
            request.n_shared = self._share_prefix(len(self._active) - 1, request.prompt, request.adapter)
            request.timing.admitted = perf_counter()
            if request.on_update is not None:
                request.on_update()
            return request
        return None

    def _share_prefix(self, slot: int, prompt: list[int], adapter: str | None = None) -> int:
        """Puts the keys and values of the longest known beginning of `prompt` into `slot`; its length in tokens.

        The last token of the prompt is always left to compute: its hidden state is what the answer starts from.
        """
        known = [common_prefix(prompt[:-1], filled) for filled in self._cached_tokens]
        if self.deterministic:
            same = (min(n, computed) for n, computed in zip(known, self._prefilled, strict=True))
            known = [n - n % self._fixed_chunk for n in same]
        known = [n if self.cache.resumable(other, n) else 0 for other, n in enumerate(known)]
        known = [n if self._adapters[other] == adapter else 0 for other, n in enumerate(known)]
        source = max(range(self.slots), key=lambda other: (known[other], other == slot))
        shared = known[source]
        if source != slot:
            self.cache.copy(source, slot, shared)
        self._cached_tokens[slot] = prompt[:shared]
        self._prefilled[slot] = shared
        self._adapters[slot] = adapter
        return shared

    def _choose(self, requests: list[Request], hidden: Tensor) -> list[tuple[int, Logprob | None]]:
        """The next token of each request, from its hidden state `(n, C)`, and what it asks to know of it."""
        if self.deterministic and len(requests) > 1:
            rows = [row.clone() for row in hidden.split(1)]  # each where memory is aligned as for any other
            return [self._choose([request], row)[0] for request, row in zip(requests, rows, strict=True)]
        with self.using_adapters([request.adapter for request in requests]):
            logits: Tensor = self.model.head(hidden).float()  # (n, V)
        finite = logits.amax(dim=-1).isfinite()
        asking = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
        own = logits[asking] if asking else logits[:0]  # a copy: the model's own scores
        for row, request in enumerate(requests):
            try:
                self._shape(logits[row], request)
            except LitGPTError as error:  # ends this request, not its neighbours
                request.refuse(error)
        draws = [request.draw() for request in requests]
        chosen = choose(logits, [request.sampling for request in requests], draws)
        # All that the host has to know, at once: it waits for a GPU no more than once a token.
        left = logits.amax(dim=-1).isfinite() if any(restricted(request) for request in requests) else finite
        tokens, fine, choosable = torch.stack((chosen, finite, left)).tolist()
        self._check_finite(all(fine))
        for row, request in enumerate(requests):
            tokens[row] = request.forced[request.n_generated] if request.forced else tokens[row]
        for request, some in zip(requests, choosable, strict=True):
            if not some and restricted(request) and not request.done:
                request.refuse(nothing_left())
        noted: dict[int, Logprob] = {}
        if asking:
            settings = [requests[row].sampling for row in asking]
            noted = dict(zip(asking, measure(own, [tokens[row] for row in asking], settings), strict=True))
        return [(token, noted.get(row)) for row, token in enumerate(tokens)]

    def _scores(self, hidden: Tensor) -> Tensor:
        """The model's float32 scores `(…, V)` of hidden states `(…, C)`."""
        logits: Tensor = self.model.head(hidden).float()
        self._check_finite(bool(logits.amax(dim=-1).isfinite().all()))
        return logits

    def _check_finite(self, finite: bool) -> None:
        if not finite:
            name = str(self.dtype).removeprefix("torch.")
            raise LitGPTError(f"The model's scores are not finite numbers in {name}; try another precision.")

    def _shape(self, scores: Tensor, request: Request) -> None:
        """Changes the scores `(V,)` as the request asks, in place."""
        if request.sampling.penalizing:
            scores[:] = penalize(scores, request.sampling, request.prompt, request.output)
        request.restrict(scores)

    def _release(self) -> None:
        """Takes requests that are done out of their slots; others move there: slots in use are the first ones."""
        for request in [request for request in self._active if request.done]:
            slot, last = self._active.index(request), len(self._active) - 1
            if (
                slot < last - 1 and not self._active[last].output
            ):  # a prompt that is not through stays behind the others
                self._swap(slot, last - 1)
                slot = last - 1
            self._swap(slot, last)
            self._active.pop()

    def _swap(self, a: int, b: int) -> None:
        if a == b:
            return
        self.cache.swap(a, b, max(len(self._cached_tokens[a]), len(self._cached_tokens[b])))
        self._active[a], self._active[b] = self._active[b], self._active[a]
        self._cached_tokens[a], self._cached_tokens[b] = self._cached_tokens[b], self._cached_tokens[a]
        self._prefilled[a], self._prefilled[b] = self._prefilled[b], self._prefilled[a]
        self._adapters[a], self._adapters[b] = self._adapters[b], self._adapters[a]
