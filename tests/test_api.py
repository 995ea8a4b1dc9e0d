"""`LLM`: LitGPT's methods and signatures, and what is right where it was wrong."""

from __future__ import annotations

import copy
import gc
import inspect
from pathlib import Path

import pytest
import torch

from litgpt import LLM
from litgpt.api import benchmark_dict_to_markdown_table
from litgpt.checkpoint.reader import load_model
from litgpt.engine import placement, sequential
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.prompts import Alpaca, load_prompt_style
from tests.engine.oracle import naive
from tests.generate.folder import END, make_folder

GREEDY = dict(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("api") / "tiny")


@pytest.fixture
def llm(folder) -> LLM:
    return LLM.load(folder, distribute=None)


@pytest.fixture
def engines(monkeypatch) -> list[Engine]:
    """Every engine that is made, in order."""
    made: list[Engine] = []
    make = InferenceModel.engine

    def engine(self, *args):
        made.append(make(self, *args))
        return made[-1]

    monkeypatch.setattr(InferenceModel, "engine", engine)
    return made


def expected_ids(folder: Path, prompt: str, n: int = 12, sys_prompt: str | None = None) -> list[int]:
    ids = naive(load_model(folder), InferenceModel.load(folder, "cpu", "32-true").encode(prompt, sys_prompt), n)
    return ids[: ids.index(END)] if END in ids else ids


def text_of(llm: LLM, ids: list[int]) -> str:
    return llm.tokenizer.decode(ids)


# -- signatures


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("load", "model init tokenizer_dir access_token distribute parse_special_tokens"),
        (
            "distribute",
            "self accelerator devices precision quantize generate_strategy fixed_kv_cache_size deterministic",
        ),
        (
            "generate",
            "self prompt sys_prompt max_new_tokens temperature top_k top_p return_as_token_ids stream settings",
        ),
        ("forward", "self input_ids target_ids loss_fn"),
        ("trainer_setup", "self trainer_ckpt"),
        ("save", "self out_dir prompt_style"),
        ("benchmark", "self num_iterations kwargs"),
    ],
)
def test_methods_take_litgpts_arguments_in_its_order(method, names):
    assert " ".join(inspect.signature(getattr(LLM, method)).parameters) == names


# -- generating


@pytest.mark.parametrize("kind", ["hf", "litgpt"])
def test_a_folder_of_either_kind_answers(tmp_path, kind):
    folder = make_folder(tmp_path / "tiny", kind)
    llm = LLM.load(str(folder), distribute=None)
    assert llm.generate("What food?", **GREEDY) == text_of(llm, expected_ids(folder, "What food?"))
    assert llm.checkpoint_dir == folder and llm.config.n_layer == 2


def test_a_system_prompt(llm, folder):
    answer = llm.generate("Hi", sys_prompt="Be brief.", **GREEDY)
    assert answer == text_of(llm, expected_ids(folder, "Hi", sys_prompt="Be brief."))


def test_a_list_of_prompts_is_answered_together_and_each_as_alone(llm):
    prompts = [f"Prompt {'and more ' * n}" for n in range(5)]
    together = llm.generate(prompts, **GREEDY)
    assert together == [llm.generate(prompt, **GREEDY) for prompt in prompts]
    assert llm.generate([], **GREEDY) == []


def test_token_ids_instead_of_text(llm, folder):
    ids = llm.generate("Hi", return_as_token_ids=True, **GREEDY)
    assert isinstance(ids, torch.Tensor) and ids.tolist() == expected_ids(folder, "Hi")
    assert torch.cat(list(llm.generate("Hi", return_as_token_ids=True, stream=True, **GREEDY))).equal(ids)
    nothing = llm.generate("Hi", return_as_token_ids=True, logit_bias={END: 1000.0})
    assert nothing.equal(torch.tensor([], dtype=torch.long))


def test_streamed_pieces_join_to_the_whole_answer(llm):
    pieces = llm.generate("Hi", stream=True, **GREEDY)
    assert inspect.isgenerator(pieces)
    pieces = list(pieces)
    assert len(pieces) > 3 and "".join(pieces) == llm.generate("Hi", **GREEDY)


def test_streams_read_in_turns_and_calls_between_them_do_not_mix(llm):
    whole = {prompt: llm.generate(prompt, **GREEDY) for prompt in ("One", "Two", "Three")}
    one, two = (llm.generate(prompt, stream=True, **GREEDY) for prompt in ("One", "Two"))
    said = next(one), next(two)
    assert llm.generate("Three", **GREEDY) == whole["Three"]
    assert said[0] + "".join(one) == whole["One"]
    assert said[1] + "".join(two) == whole["Two"]


def test_a_stream_that_is_given_up_ends_its_request(llm, engines):
    stream = llm.generate("Hi", stream=True, **GREEDY)
    next(stream)
    del stream
    gc.collect()
    llm.generate("Hi", **GREEDY)
    (engine,) = engines
    assert not engine.busy


def test_answers_end_at_the_stop_token(llm):
    with torch.no_grad():
        llm.model.lm_head.weight[:] = 0
        llm.model.lm_head.weight[END] = 0.1
        llm.model.transformer.ln_f.weight[:] = 0
    assert llm.generate("Hi", temperature=0.0) == "" or END not in llm.generate("Hi", return_as_token_ids=True)


def test_torchs_seed_makes_answers_repeatable(llm):
    def said() -> str:
        torch.manual_seed(5)
        return llm.generate("Hi", max_new_tokens=20, top_k=50)

    assert said() == said() != llm.generate("Hi", max_new_tokens=20, top_k=50)


def test_a_conversation(llm, folder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now?"},
    ]
    inference_model = InferenceModel.load(folder, "cpu", "32-true")
    ids = naive(load_model(folder), inference_model.encode_messages(messages), 12)
    expected = text_of(llm, ids[: ids.index(END)] if END in ids else ids)
    assert llm.chat(messages, **GREEDY) == expected
    pieces = llm.chat(messages, **GREEDY, stream=True)
    assert not isinstance(pieces, str) and "".join(pieces) == expected


@pytest.mark.parametrize("messages", ["Hello", {"role": "user"}, [{"content": "Hello"}], [None]], ids=str)
def test_what_is_no_conversation_is_refused(llm, messages):
    with pytest.raises(LitGPTError, match="A conversation is a list of"):
        llm.chat(messages)


def test_further_settings(llm):
    whole = llm.generate("Hi", **GREEDY)
    assert llm.generate("Hi", **GREEDY, stop=whole[3:5]) == whole[: whole.index(whole[3:5])]
    random = dict(max_new_tokens=12, temperature=1.5)
    assert llm.generate("Hi", **random, seed=3) == llm.generate("Hi", **random, seed=3)
    assert llm.generate("Hi", **random, seed=3) != llm.generate("Hi", **random, seed=4)
    with pytest.raises(LitGPTError, match="no setting 'sed'.* Closest: seed"):
        llm.generate("Hi", sed=3)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_not_for_token_ids(llm, engines, stream):
    with pytest.raises(LitGPTError, match="leave out stop"):
        llm.generate("Hi", stop="a", return_as_token_ids=True, stream=stream)
    assert not engines


def test_a_prompt_that_cannot_be_leaves_those_before_it_nowhere(llm, engines, monkeypatch):
    llm.generate("Hi", **GREEDY)
    encode = InferenceModel.encode
    monkeypatch.setattr(InferenceModel, "encode", lambda self, text, *args: encode(self, text, *args) if text else [])
    with pytest.raises(LitGPTError, match="prompt is empty"):
        llm.generate(["Hi", ""], **GREEDY)
    assert not any(engine.busy for engine in engines)


def test_what_interrupts_an_answer_leaves_no_request_behind(llm, engines, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hi", "Ho"], **GREEDY)
    assert llm.generate("Hi", **GREEDY) and not any(engine.busy for engine in engines)


def test_top_p_zero_is_greedy(llm):
    assert llm.generate("Hi", top_p=0.0, max_new_tokens=12) == llm.generate("Hi", **GREEDY)


def test_the_cache_grows_once_and_stays_for_shorter_calls(tmp_path, engines):
    llm = LLM.load(make_folder(tmp_path / "tiny", block_size=1024), distribute=None)
    llm.generate("Hi", **GREEDY)
    assert [engine.length for engine in engines] == [256]
    llm.generate("Hi " * 150, **GREEDY)
    _, large = engines
    assert large.length > 256
    llm.generate("Hi", **GREEDY)
    assert len(engines) == 2


@pytest.mark.parametrize(("size", "length"), [(64, 64), ("max_model_supported", 128)])
def test_a_fixed_cache(llm, engines, size, length):
    llm.distribute(precision="32-true", fixed_kv_cache_size=size)
    llm.generate("Hi", **GREEDY)
    assert [engine.length for engine in engines] == [length]


def test_answers_follow_the_weights_as_they_are_trained(llm):
    before = llm.generate("Hello there", **GREEDY)
    with torch.no_grad():
        llm.model.transformer.wte.weight += 0.5 * torch.randn(llm.model.transformer.wte.weight.shape)
    after = llm.generate("Hello there", **GREEDY)
    assert before != after == copy.deepcopy(llm).generate("Hello there", **GREEDY)  # which has an engine of its own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(prompt="hay " * 300), "context only 128; shorten"),
        (dict(prompt="Hi", max_new_tokens=0), "max_new_tokens is 0"),
        (dict(prompt="Hi", max_new_tokens="5"), "max_new_tokens is '5'"),
        (dict(prompt=None), "A prompt is a text, or a list of texts, not None"),
        (dict(prompt=["Hi", 5]), r"not \['Hi', 5\]"),
        (dict(prompt="Hi", temperature=-1), "temperature is -1"),
        (dict(prompt=["Hi"], stream=True), "Only a single prompt can be streamed"),
    ],
)
def test_generating_what_cannot_be_is_told(llm, arguments, words):
    with pytest.raises(LitGPTError, match=words):
        llm.generate(**arguments)
    assert llm.generate("Hi", **GREEDY)


# -- loading and placing


def test_fresh_weights_need_a_tokenizer_and_get_one(folder):
    with pytest.raises(LitGPTError, match="give tokenizer_dir"):
        LLM.load("pythia-14m", init="random")
    llm = LLM.load("pythia-14m", init="random", tokenizer_dir=folder)
    assert llm.config.name == "pythia-14m"
    assert isinstance(llm.generate("Hi", max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(model="nowhere/at/all"), "nowhere/at/all"),
        (dict(model="pythia-41m", init="random", tokenizer_dir="."), "pythia"),
        (dict(model="x", init="other"), "init is 'other'"),
        (dict(model="x", distribute="all"), "distribute is 'all'"),
    ],
)
def test_loading_what_is_not_there_is_told(arguments, words):
    with pytest.raises(LitGPTError, match=words):
        LLM.load(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(devices=2), "need a generate_strategy"),
        (dict(devices=2, generate_strategy="sequential"), r"2 devices were asked for, but this machine has 1 \(cpu\)"),
        (dict(devices=2, generate_strategy="tensor_parallel"), "2 devices were asked for"),
        (dict(devices=0, generate_strategy="sequential"), "0 devices were asked for"),
        (dict(generate_strategy="pipeline"), "'sequential' or 'tensor_parallel'"),
        (dict(accelerator="quantum"), "Unknown device 'quantum'"),
        (dict(precision="8"), "Unknown precision"),
        (dict(quantize="bnb.nf4", precision="bf16-mixed"), "bnb.nf4 computes in one dtype"),
        (dict(fixed_kv_cache_size=4096), "context is 128"),
        (dict(fixed_kv_cache_size="all"), "fixed_kv_cache_size is 'all'"),
    ],
)
def test_placing_where_it_cannot_be_is_told(llm, arguments, words):
    with pytest.raises(LitGPTError, match=words):
        llm.distribute(**{"accelerator": "cpu", **arguments})


@pytest.mark.parametrize("strategy", ["sequential", "tensor_parallel"])
def test_a_strategy_for_the_one_device_that_there_is(llm, strategy):
    answer = llm.generate("Hi", **GREEDY)
    llm.distribute(accelerator="cpu", precision="32-true", generate_strategy=strategy)
    assert llm.generate("Hi", **GREEDY) == answer


def test_layers_in_sequence(llm, monkeypatch, tmp_path):
    answer = llm.generate("Hi", **GREEDY)
    spread = []
    spread_layers = sequential.spread_layers
    monkeypatch.setattr(sequential, "spread_layers", lambda *args: spread.append(args) or spread_layers(*args))
    monkeypatch.setattr(placement, "local_devices", lambda place, devices: [place] * devices)
    llm.distribute(accelerator="cpu", devices=2, precision="32-true", generate_strategy="sequential")
    assert spread == [(llm.model, [torch.device("cpu")] * 2)]
    assert llm.generate("Hi", **GREEDY) == answer
    with pytest.raises(LitGPTError, match="on several devices can't be saved"):
        llm.save(tmp_path / "saved")
    llm.distribute(accelerator="cpu", precision="32-true")  # the weights are still those of the folder
    llm.save(tmp_path / "saved")
    assert LLM.load(tmp_path / "saved", distribute=None).generate("Hi", **GREEDY) == answer


def test_auto_takes_16_bits_and_another_precision_is_read_from_the_files(folder, llm):
    auto = LLM.load(folder)
    assert auto.model.lm_head.weight.dtype == torch.bfloat16
    auto.distribute(accelerator="cpu", precision="32-true")
    assert torch.equal(auto.model.lm_head.weight, llm.model.lm_head.weight)


def test_weights_that_were_changed_are_not_read_again(llm):
    with torch.no_grad():
        llm.model.lm_head.weight.fill_(0.25)
    llm.distribute(accelerator="cpu", precision="32-true")
    assert bool((llm.model.lm_head.weight == 0.25).all())


def test_a_copy_generates_too(llm):
    answer = llm.generate("Hi", **GREEDY)
    assert copy.deepcopy(llm).generate("Hi", **GREEDY) == answer


# -- training


def test_forward_gives_logits_and_the_loss_of_the_tokens_that_follow(llm):
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    logits = llm(ids)
    assert logits.shape == (2, 4, llm.config.padded_vocab_size)
    targets = ids.clone()
    targets[:, :2] = -100
    again, loss = llm(ids, target_ids=targets)
    assert torch.equal(logits, again)
    expected = torch.nn.functional.cross_entropy(logits[:, 1:3].reshape(4, -1), ids[:, 2:].reshape(4))
    torch.testing.assert_close(loss, expected)
    assert llm(ids, ids, loss_fn=lambda logits, targets: logits.sum() * 0 + targets.sum())[1] == ids[:, 1:].sum()


def test_it_can_be_trained(llm):
    llm.trainer_setup()
    assert llm.training and all(parameter.requires_grad for parameter in llm.parameters())
    optimizer = torch.optim.SGD(llm.parameters(), lr=0.5)
    ids = torch.tensor([[3, 4, 5, 6, 3, 4, 5, 6]])
    losses = []
    for _ in range(8):
        _, loss = llm(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert isinstance(llm.generate("Hi", max_new_tokens=3), str)
    assert llm.model.training


def test_trainer_setup_takes_the_weights_of_the_folder(folder):
    llm = LLM.load(folder)
    llm.trainer_setup()
    weights = load_model(folder)
    assert torch.equal(llm.model.lm_head.weight, weights.lm_head.weight)


def test_trainer_setup_takes_the_weights_of_a_trainer_checkpoint(llm, tmp_path):
    state = {f"llm.{name}": torch.zeros_like(tensor) for name, tensor in llm.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "epoch.ckpt")
    llm.trainer_setup(tmp_path / "epoch.ckpt")
    assert not any(parameter.any() for parameter in llm.model.parameters())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no Trainer checkpoint"),
        (b"junk", "is damaged"),
        (b"", "is damaged"),
        ({"state_dict": {}}, "has no tensor 'lm_head.weight'"),
    ],
)
def test_a_wrong_trainer_checkpoint_is_told(llm, tmp_path, content, words):
    file = tmp_path / "epoch.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(LitGPTError, match=words):
        llm.trainer_setup(file)


# -- state


def test_state_dicts_have_the_models_names(llm):
    assert list(llm.state_dict()) == list(llm.model.state_dict())
    llm.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in llm.state_dict().items()})
    assert not llm.model.lm_head.weight.any()


def test_a_module_around_it_loads_what_it_saved(folder):
    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llm = LLM.load(folder, distribute=None)

    saved, other = Around(), Around()
    with torch.no_grad():
        saved.llm.model.lm_head.weight.fill_(0.5)
    assert "llm.lm_head.weight" in saved.state_dict()
    other.load_state_dict(saved.state_dict())
    assert bool((other.llm.model.lm_head.weight == 0.5).all())


@pytest.mark.parametrize("style", [None, Alpaca()])
def test_saving_makes_a_folder_that_loads(llm, tmp_path, style):
    with torch.no_grad():
        llm.model.lm_head.weight *= 1.5
    llm.save(tmp_path / "saved", style)
    again = LLM.load(tmp_path / "saved", distribute=None)
    assert all(torch.equal(a, b) for a, b in zip(llm.parameters(), again.parameters(), strict=True))
    if style is None:
        assert again.generate("Hi", **GREEDY) == llm.generate("Hi", **GREEDY)
    else:
        assert isinstance(load_prompt_style(tmp_path / "saved"), Alpaca)


# -- measuring


@pytest.mark.parametrize("stream", [False, True])
def test_benchmark_measures_every_iteration_once(llm, monkeypatch, stream):
    submitted = []
    submit = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, *args: submitted.append(args) or submit(self, *args))
    answer, rows = llm.benchmark(num_iterations=3, prompt="Hi", stream=stream, **GREEDY)
    assert len(submitted) == 3
    assert "".join(answer) == llm.generate("Hi", **GREEDY)
    assert list(rows) == [
        "Seconds total",
        "Seconds to first token",
        "Tokens generated",
        "Inference speed in tokens/sec",
        "Total GPU memory allocated in GB",
    ]
    assert all(len(values) == 3 for values in rows.values())
    assert rows["Tokens generated"] == [12, 12, 12]
    for total, first, speed in zip(*list(rows.values())[:2], rows["Inference speed in tokens/sec"], strict=True):
        assert 0 < first <= total and speed == pytest.approx(12 / total)
    assert benchmark_dict_to_markdown_table(rows).count("\n") == 7


def test_benchmark_takes_what_generate_takes(llm):
    whole = llm.generate("Hi", **GREEDY)
    assert llm.benchmark(prompt="Hi", stop=whole[3:5], **GREEDY)[0] == whole[: whole.index(whole[3:5])]
    ids, _ = llm.benchmark(prompt="Hi", return_as_token_ids=True, **GREEDY)
    assert ids.equal(llm.generate("Hi", return_as_token_ids=True, **GREEDY))
    for wrong in (dict(), dict(prompt=["Hi"]), dict(prompt="Hi", num_iterations=0)):
        with pytest.raises(LitGPTError, match="needs one prompt"):
            llm.benchmark(**wrong)


def test_ids_beyond_the_vocabulary_are_named(llm):
    size = llm.model.transformer.wte.num_embeddings
    for token in (size, -1):
        with pytest.raises(LitGPTError, match=rf"The input has the token id {token}, .* 0 ... {size - 1}"):
            llm(torch.tensor([[1, token]]))
