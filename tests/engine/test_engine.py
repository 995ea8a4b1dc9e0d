"""The engine against the oracle, whatever the company a request is in, and what it refuses."""

from __future__ import annotations

import functools
import gc
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt.engine import memory
from litgpt.engine.engine import Engine
from litgpt.engine.request import Request
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.cache import Span
from tests.checkpoint.anonymous import peak_growth
from tests.engine.oracle import MODELS, naive, prompts, tiny_model

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model()


# -- greedy text is the oracle's


@pytest.mark.parametrize("case", MODELS)
def test_alone(case):
    model = tiny_model(case)
    (prompt,) = prompts(9)
    assert Engine(model).submit(prompt, GREEDY, max_new_tokens=24).result() == naive(model, prompt, 24)


@pytest.mark.parametrize("case", MODELS)
def test_in_a_batch_of_mixed_lengths_with_more_requests_than_slots(case):
    model = tiny_model(case)
    engine = Engine(model, slots=3, chunk=8)
    requests = [engine.submit(p, GREEDY, max_new_tokens=5 + 3 * i) for i, p in enumerate(prompts(1, 21, 7, 30, 2, 12))]
    assert [r.result() for r in requests] == [naive(model, r.prompt, r.limit) for r in requests]
    assert not engine.busy


@pytest.mark.parametrize("case", MODELS)
def test_joined_midway(case):
    model = tiny_model(case)
    engine = Engine(model, slots=2, chunk=4)
    first = engine.submit(prompts(6)[0], GREEDY, max_new_tokens=30)
    for _ in range(7):
        engine.step()
    assert len(first.output) > 3
    joined = engine.submit(prompts(13, seed=2)[0], GREEDY, max_new_tokens=20)
    assert joined.result() == naive(model, joined.prompt, 20)
    assert first.result() == naive(model, first.prompt, 30)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_whatever_the_chunk(model, chunk):
    requests = [Engine(model, slots=2, chunk=chunk).submit(p, GREEDY, max_new_tokens=9) for p in prompts(20, 7)]
    assert [r.result() for r in requests] == [naive(model, r.prompt, 9) for r in requests]


def test_running_requests_go_on_while_a_long_prompt_is_processed(model):
    engine = Engine(model, slots=2, chunk=2)
    short = engine.submit(prompts(2)[0], GREEDY, max_new_tokens=40)
    engine.step()
    long = engine.submit(prompts(20, seed=3)[0], GREEDY, max_new_tokens=4)
    for steps in range(1, 6):
        engine.step()
        assert len(short.output) == 1 + steps and not long.output
    assert long.result() == naive(model, long.prompt, 4)
    assert short.result() == naive(model, short.prompt, 40)


def test_the_first_token_waits_for_the_prompts_before_it_and_no_longer(model):
    chunk, lengths = 8, (20, 3, 9, 17, 1, 24, 2, 12)
    engine = Engine(model, slots=8, chunk=chunk)
    requests = [engine.submit(p, GREEDY, max_new_tokens=20) for p in prompts(*lengths)]
    first: dict[int, int] = {}
    for number in range(1, 14):
        engine.step()
        first |= {i: number for i, request in enumerate(requests) if request.output and i not in first}
    before = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    assert [first[i] for i in range(len(lengths))] == [-(-tokens // chunk) for tokens in before]


def test_a_request_that_leaves_does_not_disturb_a_half_processed_prompt(model):
    engine = Engine(model, slots=3, chunk=3)
    first, second = (engine.submit(p, GREEDY, max_new_tokens=n) for p, n in zip(prompts(1, 2), (4, 20), strict=True))
    engine.step()
    long = engine.submit(prompts(24, seed=3)[0], GREEDY, max_new_tokens=10)
    for request in (first, second, long):
        assert request.result() == naive(model, request.prompt, request.limit)


def test_a_shared_beginning_is_computed_once(model):
    engine = Engine(model, slots=2)
    system = prompts(20)[0]
    first = engine.submit([*system, 5, 6], GREEDY, max_new_tokens=6)
    together = engine.submit([*system, 7], GREEDY, max_new_tokens=6)
    after = engine.submit([*system, 5, 6, *naive(model, [*system, 5, 6], 6), 9], GREEDY, max_new_tokens=6)
    for request in (first, together, after):
        assert request.result() == naive(model, request.prompt, 6)
    assert first.n_shared == 0
    assert together.n_shared == 20
    assert after.n_shared == 22 + 5  # the last token of an answer is never fed back


def test_the_same_prompt_again_leaves_its_last_token_to_compute(model):
    engine = Engine(model)
    (prompt,) = prompts(10)
    answers = [engine.submit(prompt, GREEDY, max_new_tokens=5) for _ in range(2)]
    assert answers[0].result() == answers[1].result() == naive(model, prompt, 5)
    assert answers[1].n_shared == 9


def test_up_to_the_last_position_of_the_context(model):
    engine = Engine(model, length=32)
    (prompt,) = prompts(28)
    request = engine.submit(prompt, GREEDY)
    assert request.result() == naive(model, prompt, 5)
    assert request.finish_reason == "length"


def test_a_prompt_as_long_as_the_context_gets_one_token(model):
    (prompt,) = prompts(32)
    assert Engine(model, length=32).submit(prompt, GREEDY, max_new_tokens=9).result() == naive(model, prompt, 1)


def test_a_prompt_may_be_a_tensor(model):
    (prompt,) = prompts(5)
    tensor = torch.tensor(prompt, dtype=torch.int32)
    assert Engine(model).submit(tensor, GREEDY, max_new_tokens=5).result() == naive(model, prompt, 5)


def test_bfloat16_and_autocast_run():
    model = tiny_model()
    (prompt,) = prompts(5)
    cast = Engine(model, dtype=torch.bfloat16)
    assert cast.cache.keys[0].dtype == torch.bfloat16
    assert len(cast.submit(prompt, GREEDY, max_new_tokens=5).result()) == 5
    assert len(Engine(model.bfloat16()).submit(prompt, GREEDY, max_new_tokens=5).result()) == 5


SCHEDULED = {case: tiny_model(case) for case in ("llama-grouped", "llama-window", "latent-experts", "hybrid")}
SETTINGS = (GREEDY, Sampling(temperature=1.5, seed=3), Sampling(temperature=0.9, top_p=0.8, seed=4, logprobs=1))
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=40)  # two tokens: many shared beginnings
ACTS = st.one_of(
    st.tuples(st.just("submit"), PROMPTS, st.integers(1, 24), st.sampled_from(SETTINGS), st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("finish"), st.integers(0, 30)),
)


@functools.cache
def alone(case: str, prompt: tuple[int, ...], n: int, sampling: int) -> list[int]:
    """What a request says that has an engine to itself."""
    model = SCHEDULED[case]
    if SETTINGS[sampling].greedy:
        return naive(model, prompt, n)
    return Engine(model).submit(list(prompt), SETTINGS[sampling], max_new_tokens=n).result()


@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from(sorted(SCHEDULED)), st.integers(1, 4), st.integers(1, 9), st.lists(ACTS, max_size=30))
def test_any_order_of_submitting_stepping_finishing_and_cancelling(case, slots, chunk, acts):
    """Whatever happens around it, a request's text is what it would be alone, and every slot comes back."""
    engine = Engine(SCHEDULED[case], slots, chunk=chunk)
    requests: list[Request] = []
    for act in acts:
        match act:
            case "submit", prompt, n, sampling, goes_on:
                if goes_on and requests:  # the next turn of what was said
                    prompt = [*requests[-1].prompt, *requests[-1].output, *prompt][:40]
                requests.append(engine.submit(prompt, sampling, max_new_tokens=n))
            case "step", n:
                for _ in range(n):
                    engine.step()
            case "cancel", number if requests:
                requests[number % len(requests)].cancel()
            case "finish", number if requests:
                requests[number % len(requests)].result()
    for request in requests:
        answer = request.result()
        expected = alone(case, tuple(request.prompt), request.limit, SETTINGS.index(request.sampling))
        assert answer == expected[: len(answer)]
        assert len(answer) == request.limit or request.finish_reason == "cancelled"
    engine.step()
    assert (engine.n_running, engine.n_waiting, engine.busy) == (0, 0, False)
    together = [engine.submit([1, i], GREEDY, max_new_tokens=20) for i in range(slots)]
    for _ in range(2 * slots):  # a chunk may be one token
        engine.step()
    assert engine.n_running == slots, "a slot is lost"
    for request in together:
        request.cancel()


def test_attention_reads_only_what_is_filled(model, monkeypatch):
    lengths: list[int] = []
    extend = Span.extend

    def recorded(self, layer, k, v):
        keys, values = extend(self, layer, k, v)
        lengths.append(keys.size(2))
        return keys, values

    monkeypatch.setattr(Span, "extend", recorded)
    engine = Engine(model, slots=4)
    requests = [engine.submit(prompt, GREEDY, max_new_tokens=4) for prompt in prompts(5, 9)]
    for request in requests:
        request.result()
    assert max(lengths) == 9 + 3


@pytest.mark.parametrize("chunk", [3, 16, 64])
def test_layers_with_a_window_keep_no_more_than_it_and_a_chunk(chunk):
    model = tiny_model("llama-window")  # of 5 tokens
    engine = Engine(model, slots=2, chunk=chunk)
    room = min(64, 5 + max(16, chunk))
    assert {tensor.size(2) for tensor in engine.cache.kv_tensors} == {room}
    assert engine.cache_nbytes == sum(tensor.nbytes for tensor in engine.cache.kv_tensors)
    for prompt in prompts(1, 20, 40, 60):
        request = engine.submit(prompt, GREEDY, max_new_tokens=30)
        assert request.result() == naive(model, prompt, request.limit)


def test_a_beginning_whose_window_was_overwritten_is_computed_again():
    model = tiny_model("llama-window")
    engine = Engine(model, chunk=16)  # keeps 21 tokens
    (prompt,) = prompts(60)
    assert engine.submit(prompt, GREEDY, max_new_tokens=2).result() == naive(model, prompt, 2)
    near, far = [*prompt[:50], 3], [*prompt[:20], 3]
    for beginning, shared in ((near, 50), (far, 0)):
        request = engine.submit(beginning, GREEDY, max_new_tokens=9)
        assert request.result() == naive(model, beginning, 9)
        assert request.n_shared == shared


# -- chance


def test_a_seeded_request_says_the_same_in_any_company(model):
    prompt, *others = prompts(8, 3, 17, 5)
    sampling = Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=7)
    alone = Engine(model).submit(prompt, sampling, max_new_tokens=20).result()
    engine = Engine(model, slots=3, chunk=4)
    company = [engine.submit(p, Sampling(temperature=2.0), max_new_tokens=9) for p in others]
    among = engine.submit(prompt, sampling, max_new_tokens=20)
    assert among.result() == alone
    assert all(len(request.result()) == 9 for request in company)


def test_torchs_seed_makes_unseeded_requests_repeatable(model):
    def sampled() -> list[int]:
        torch.manual_seed(3)
        return Engine(model).submit([1, 2], Sampling(), max_new_tokens=20).result()

    assert sampled() == sampled()


def test_greedy_requests_leave_torchs_random_state_alone(model):
    before = torch.get_rng_state()
    Engine(model).submit([1, 2], GREEDY, max_new_tokens=3).result()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_repetition_penalty_looks_at_prompt_and_answer(model):
    sampling = Sampling(temperature=0, repetition_penalty=1e6)
    answer = Engine(model).submit([1, 2], sampling, max_new_tokens=30).result()
    assert len({1, 2, *answer}) == 32  # nothing twice


# -- log-probabilities


def expected(model: GPT, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The log-probabilities of every token where each of `answer` was drawn, `(T, V)`."""
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(seed=1), dict(seed=2, repetition_penalty=3.0, top_k=4)])
@pytest.mark.parametrize("n", [0, 3, 20])
def test_log_probabilities_are_the_models_own(model, settings, n):
    engine = Engine(model, slots=3, chunk=4)
    plain, asked, other = (
        engine.submit(prompt, Sampling(**settings, logprobs=wanted, logit_bias={3: 2.0}), max_new_tokens=9)
        for prompt, wanted in zip(prompts(9, 9, 5), (None, n, 1), strict=True)
    )
    assert len(asked.result()) == len(asked.logprobs) == len(other.result()) == len(other.logprobs) == 9
    assert plain.result() and plain.logprobs == []
    own = expected(model, asked.prompt, asked.output)
    for token, noted, row in zip(asked.output, asked.logprobs, own, strict=True):
        best = row.topk(n)
        assert noted.token == token and noted.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [token for token, _ in noted.top] == best.indices.tolist()
        assert [value for _, value in noted.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_what_a_stop_sequence_takes_back_has_no_log_probabilities(model):
    (prompt,) = prompts(4)
    whole = naive(model, prompt, 20)
    request = Engine(model).submit(prompt, Sampling(temperature=0, logprobs=0), [whole[5:8]], max_new_tokens=20)
    assert request.result() == [noted.token for noted in request.logprobs] == whole[:5]


def test_a_bias_bans_and_forces_tokens(model):
    (prompt,) = prompts(4)
    first = naive(model, prompt, 1)[0]
    banned = Engine(model).submit(prompt, Sampling(temperature=0, logit_bias={first: -1000.0}), max_new_tokens=9)
    assert first not in banned.result()
    forced = Engine(model).submit(prompt, Sampling(seed=0, logit_bias={42: 1000.0}), max_new_tokens=3)
    assert forced.result() == [42] * 3


def test_settings_that_leave_no_token_end_their_request_only():
    model = tiny_model(vocab_size=8, padded_vocab_size=8)
    engine = Engine(model, slots=2)
    never_twice = Sampling(temperature=0, presence_penalty=3e38, frequency_penalty=3e38)
    bad, good = (engine.submit([1], sampling, max_new_tokens=20) for sampling in (never_twice, GREEDY))
    with pytest.raises(LitGPTError, match="no token to choose"):
        bad.result()
    assert sorted(bad.output) == list(range(8))
    assert good.result() == naive(model, [1], 20)


# -- ends


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(model):
    (prompt,) = prompts(4)
    whole = naive(model, prompt, 20)
    request = Engine(model).submit(prompt, GREEDY, stop=[whole[6]], max_new_tokens=20)
    assert request.result() == whole[: whole.index(whole[6])]
    assert request.finish_reason == "stop"
    assert request.n_generated == len(request.output) + 1


def test_a_stop_sequence_is_held_back_until_it_is_certain(model):
    (prompt,) = prompts(4)
    whole = naive(model, prompt, 20)
    engine = Engine(model)
    request = engine.submit(prompt, GREEDY, stop=[whole[5:8]], max_new_tokens=20)
    seen: list[int] = []
    while not request.done:
        engine.step()
        seen += request.take()
        assert seen == whole[: len(seen)] and len(seen) <= 5
    assert seen + request.take() == whole[:5]


def test_what_only_began_like_a_stop_sequence_comes_out(model):
    (prompt,) = prompts(4)
    whole = naive(model, prompt, 6)
    request = Engine(model).submit(prompt, GREEDY, stop=[[*whole[4:6], 0, 0]], max_new_tokens=6)
    assert list(request) == whole
    assert request.finish_reason == "length"


def test_tokens_come_out_one_by_one(model):
    engine = Engine(model)
    request = engine.submit(prompts(4)[0], GREEDY, max_new_tokens=5)
    stream = iter(request)
    for n in range(1, 6):
        next(stream)
        assert len(request.output) == n


def test_two_streams_taken_in_turns_do_not_mix(model):
    engine = Engine(model, slots=2)
    a, b = (engine.submit(p, GREEDY, max_new_tokens=12) for p in prompts(4, 9))
    pairs = list(zip(a, b, strict=True))
    assert [[pair[i] for pair in pairs] for i in range(2)] == [naive(model, r.prompt, 12) for r in (a, b)]


def test_a_cancelled_request_frees_its_slot(model):
    engine = Engine(model, slots=1)
    running, waiting, behind = (engine.submit(p, GREEDY, max_new_tokens=30) for p in prompts(4, 5, 6))
    engine.step()
    running.cancel()
    running.cancel()
    waiting.cancel()
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert list(running) == naive(model, running.prompt, 1)
    assert behind.result() == naive(model, behind.prompt, 30)
    assert (engine.n_running, engine.n_waiting) == (0, 0)


def test_a_training_model_is_evaluated_and_left_training():
    model = tiny_model()
    model.train()
    Engine(model).submit([1], GREEDY, max_new_tokens=2).result()
    assert model.training and model.transformer.h[0].training


def test_a_model_that_generated_can_still_be_trained():
    model = tiny_model()
    Engine(model).submit(prompts(30)[0], GREEDY, max_new_tokens=2).result()
    model(torch.tensor([prompts(30)[0]])).sum().backward()
    assert model.lm_head.weight.grad is not None


def test_a_thousand_requests_leave_nothing_alive():
    engine = Engine(tiny_model("llama-window", n_layer=1, n_embd=8, n_head=2), slots=50)

    def alive_after(n: int) -> int:
        """Tensors and requests that are still there after `n` more requests."""
        for i in range(0, n, 50):
            for request in [engine.submit([i % 96, j], GREEDY, max_new_tokens=2) for j in range(50)]:
                request.result()
        del request
        gc.collect()
        return sum(issubclass(type(thing), (torch.Tensor, Request)) for thing in gc.get_objects())

    assert alive_after(100) == alive_after(900)


MANY_REQUESTS = """
import gc
import torch
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from tests.engine.oracle import tiny_model

torch.set_num_threads(1)
engine = Engine(tiny_model("llama-window", n_layer=1, n_embd=8, n_head=2), slots=50)
SETTINGS = (
    Sampling(temperature=0),
    Sampling(seed=1, top_k=5, logprobs=2),
    Sampling(top_p=0.5, repetition_penalty=2.0, logit_bias={3: 1.0}),
)

def run(n):
    for i in range(0, n, 50):
        requests = [
            engine.submit([i % 96, *range(j % 30)], SETTINGS[j % 3], stop=[[3, 4], 5], max_new_tokens=1 + j % 4)
            for j in range(50)
        ]
        requests[i % 49].cancel()
        for request in requests:
            request.result()
    gc.collect()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a process's own memory")
def test_ten_thousand_requests_leave_memory_where_it_was_after_the_first_hundred():
    """In a process of its own, where nothing else comes and goes: 50 bytes a request would be seen."""
    first, others = peak_growth(MANY_REQUESTS, "run(100)", "run(9_900)")
    assert others < 500_000, f"{others} bytes more, after {first} for the first hundred"


# -- refusals, after each of which the engine lives on


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(prompt=[]), "prompt is empty"),
        (dict(prompt=[1] * 65), "65 tokens and the context only 64"),
        (dict(prompt=[1, 96]), "outside 0 ... 95"),
        (dict(prompt=[-1]), "outside 0 ... 95"),
        (dict(prompt=[1.5]), "whole numbers in one row"),
        (dict(prompt=torch.tensor([[1, 2]])), "whole numbers in one row"),
        (dict(prompt=[1], max_new_tokens=0), "max_new_tokens is 0"),
        (dict(prompt=[1], max_new_tokens=2.5), "max_new_tokens is 2.5"),
        (dict(prompt=[1], sampling=Sampling(logit_bias={96: 1.0})), "logit_bias has the token id 96"),
        (dict(prompt=[1], stop=["end"]), "not 'end'"),
        (dict(prompt=[1], stop=[[]]), r"not \[\]"),
        (dict(prompt=[1], stop=[1.5]), "not 1.5"),
        (dict(prompt=[1], stop=5), "a list of token ids and of lists of token ids, not 5"),
    ],
)
def test_what_makes_no_sense_is_refused(model, arguments, words):
    engine = Engine(model)
    with pytest.raises(LitGPTError, match=words):
        engine.submit(**arguments)
    assert engine.submit([1], GREEDY, max_new_tokens=3).result() == naive(model, [1], 3)


@pytest.mark.parametrize("arguments", [dict(slots=0), dict(length=65), dict(length=0), dict(chunk=0)])
def test_an_impossible_engine_is_refused(model, arguments):
    with pytest.raises(LitGPTError, match="can't be"):
        Engine(model, **arguments)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made(model, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    with pytest.raises(LitGPTError, match="KV cache for 100 x 64 tokens takes 1.64 MB and 0.01 MB are free"):
        Engine(model, slots=100)


def test_the_longest_fit_is_a_share_of_what_is_free(model, monkeypatch):
    def fit(devices: int = 1) -> int:
        places = [torch.device("cuda", number) for number in range(devices)]
        return memory.longest_fit(lambda length: 10 * length, 64, 2, places)

    monkeypatch.setattr(memory, "free_memory", lambda device: 400)
    assert (fit(), fit(devices=2)) == (20, 40)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    assert fit() == 64
    monkeypatch.setattr(memory, "free_memory", lambda device: 9)
    with pytest.raises(LitGPTError, match="KV cache for 2 x 1 tokens .* free on cuda:0;"):
        fit()


def test_a_failing_step_ends_its_requests_and_not_the_engine(monkeypatch):
    model = tiny_model()
    engine = Engine(model, slots=2)
    request, other = (engine.submit([token], GREEDY, max_new_tokens=9) for token in (1, 2))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(model, "hidden", lambda *args, **kwargs: torch.ones(0)[1])
        with pytest.raises(IndexError):
            request.result()
    with pytest.raises(IndexError):
        other.result()
    assert other.finish_reason == "error"
    with monkeypatch.context() as patch:  # a request that has just got its slot
        patch.setattr(engine.cache, "resumable", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit([1], GREEDY).result()
    assert engine.submit([1], GREEDY, max_new_tokens=9).result() == naive(model, [1], 9)


def test_scores_that_are_no_numbers_are_told():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(LitGPTError, match="not finite numbers in float32"):
        Engine(model).submit([1], GREEDY).result()


# -- with a thread of its own


@pytest.fixture
def started(model):
    engine = Engine(model, slots=3, chunk=8)
    engine.start()
    yield engine
    engine.stop()


def test_many_threads_submit_to_a_started_engine(model, started):
    answers: dict[int, list[int]] = {}

    def client(n: int) -> None:
        for i in range(3):
            answers[n * 3 + i] = list(started.submit([n, i], GREEDY, max_new_tokens=10))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n * 3 + i: naive(model, [n, i], 10) for n in range(6) for i in range(3)}


def test_updates_are_called_when_admitted_for_new_tokens_and_at_the_end(model, started):
    calls: list[tuple[bool, int]] = []
    request = started.submit(
        [1], GREEDY, max_new_tokens=3, on_update=lambda: calls.append((request.done, len(request.output)))
    )
    request.result()
    assert calls == [(False, 0), (False, 1), (False, 2), (True, 3)]


def test_cancelling_wakes_the_threads_that_wait(model, monkeypatch):
    engine = Engine(model)
    monkeypatch.setattr(engine, "step", lambda: time.sleep(0.01))  # which does nothing and wakes nobody
    engine.start()
    request = engine.submit([1], GREEDY)
    waiting = threading.Thread(target=request.result)
    waiting.start()
    request.cancel()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    engine.stop()


def test_stopping_cancels_and_refuses(model):
    engine = Engine(model)
    engine.start()
    request = engine.submit([1], GREEDY)
    engine.stop()
    request.result()
    assert request.done
    with pytest.raises(LitGPTError, match="stopped"):
        engine.submit([1])


def test_an_error_in_the_thread_reaches_the_client_and_the_next_request_works(monkeypatch):
    model = tiny_model()
    engine = Engine(model)
    engine.start()
    with monkeypatch.context() as patch:
        patch.setattr(model, "hidden", lambda *args, **kwargs: torch.ones(0)[1])
        with pytest.raises(IndexError):
            engine.submit([1], GREEDY).result()
        assert isinstance(engine.error, IndexError)
    assert engine.submit([1], GREEDY, max_new_tokens=5).result() == naive(model, [1], 5)
    assert engine.error is None
    engine.stop()
