"""Files and answers that somebody broke on purpose: each reader says one sentence, or reads them.

Every case is a valid file that one to three changes were made to. Many more of them have the marker `slow`.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from litgpt.checkpoint.finetuned import find_update, read_hyperparameters
from litgpt.checkpoint.gguf.reader import gguf_weights, open_gguf
from litgpt.checkpoint.gguf.writer import write_gguf
from litgpt.checkpoint.hub import look_up
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model, load_pth, read_files, trainer_weights
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.prompts import load_prompt_style, save_prompt_style
from litgpt.prompts.chat_template import Template, read_templates
from litgpt.tokenizer import Tokenizer
from tests.hostile.broken import break_file, broken_bytes, broken_json
from tests.tiny_tokenizer import write_tokenizer
from tests.tokenizers_made_here import byte_fallback, sentencepiece

SECONDS = 5
"""A case may take so long."""
MEGABYTES = 600
"""What a reader's cases may cost in memory, all together."""
HF_CONFIG = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    vocab_size=320,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    tie_word_embeddings=False,
    hidden_act="silu",
)
ADAPTER = dict(
    peft_type="LORA",
    task_type="CAUSAL_LM",
    r=2,
    lora_alpha=4,
    lora_dropout=0.0,
    target_modules=["q_proj", "down_proj"],
    rank_pattern={"layers.1.mlp.down_proj": 3},
    alpha_pattern={},
    modules_to_save=None,
    base_model_name_or_path="../hf",
)


def make_hf(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    torch.manual_seed(0)
    config = Config.from_hf(HF_CONFIG)
    from litgpt.checkpoint.weights import WeightTable, lazy

    state = GPT(config).state_dict()
    theirs = {name: tensor.contiguous() for name, tensor in WeightTable(config).export_from(lazy(state))}
    save_file(theirs, folder / "model.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(theirs, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)


def make_lit(folder: Path) -> None:
    config = Config.from_hf(HF_CONFIG)
    config.save(folder)
    save_state(folder / "lit_model.pth", GPT(config).state_dict())
    write_tokenizer(folder)
    save_prompt_style("alpaca", folder)


def make_peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    start, tensors = "base_model.model.model.layers.", {}
    for layer, r in ((0, 2), (1, 3)):
        for module, rows, columns, rank in (("self_attn.q_proj", 16, 16, 2), ("mlp.down_proj", 16, 24, r)):
            tensors[f"{start}{layer}.{module}.lora_A.weight"] = torch.rand(rank, columns)
            tensors[f"{start}{layer}.{module}.lora_B.weight"] = torch.rand(rows, rank)
    save_file(tensors, folder / "adapter_model.safetensors", {"litgpt": json.dumps({"r": 2, "alpha": 4})})


def make_lora(folder: Path) -> None:
    torch.save({"lm_head.lora_A": torch.zeros(2, 16)}, folder / "lit_model.pth.lora")
    (folder / "hyperparameters.yaml").write_text("lora_r: 2\nlora_alpha: 4\nlora_query: true\ncheckpoint_dir: ../hf\n")


def make_gguf(folder: Path) -> None:
    make_hf(folder)
    shutil.rmtree(folder / "gguf", ignore_errors=True)
    byte_fallback(folder)
    write_gguf(folder, folder / "model.gguf", "q8_0")


def make_trainer(folder: Path) -> None:
    torch.save({"state_dict": {"model.a": torch.zeros(2)}, "epoch": 1}, folder / "run.ckpt")


def make_templates(folder: Path) -> None:
    source = write_tokenizer(folder).joinpath("tokenizer_config.json").read_text()
    (folder / "chat_template.jinja").write_text(json.loads(source)["chat_template"])


def render(folder: Path) -> None:
    for source in read_templates(folder).values():
        Template(source, {"bos_token": "<s>"}, "The template").render([{"role": "user", "content": "Hi"}])


def use_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode_ids("Hello, wörld <s>")
    tokenizer.decode(ids)
    stream = tokenizer.stream()
    "".join([*map(stream.push, ids[:3]), stream.flush()])


def read_gguf(folder: Path) -> None:
    for _ in gguf_weights(open_gguf(folder / "model.gguf")):
        pass
    use_tokenizer(find_checkpoint(folder / "model.gguf").dir)


def drain(tensors: Any) -> None:
    for _ in tensors:
        pass


@dataclass(frozen=True)
class Reader:
    """What is read, and by what."""

    make: Callable[[Path], object]
    files: tuple[str, ...]
    open: Callable[[Path], object]


READERS = {
    "config.json": Reader(make_hf, ("config.json",), lambda folder: GPT.skeleton(Config.from_checkpoint(folder))),
    "model_config": Reader(
        make_lit, ("model_config.yaml",), lambda folder: GPT.skeleton(Config.from_checkpoint(folder))
    ),
    "hf": Reader(make_hf, ("model.safetensors", "model.safetensors.index.json", "config.json"), load_model),
    "pth": Reader(make_lit, ("lit_model.pth", "model_config.yaml"), load_model),
    "bin": Reader(make_lit, ("lit_model.pth",), lambda folder: load_pth(folder / "lit_model.pth")),
    "safetensors": Reader(
        make_hf, ("model.safetensors",), lambda folder: drain(read_files([folder / "model.safetensors"]))
    ),
    "trainer": Reader(make_trainer, ("run.ckpt",), lambda folder: trainer_weights(folder / "run.ckpt", ["a"])),
    "peft": Reader(
        make_peft,
        ("adapter_config.json", "adapter_model.safetensors"),
        lambda folder: (found := find_update(folder)) and found.learned(),
    ),
    "hyperparameters": Reader(
        make_lora, ("hyperparameters.yaml",), lambda folder: read_hyperparameters(folder, ".lora")
    ),
    "prompt_style": Reader(make_lit, ("prompt_style.yaml",), load_prompt_style),
    "templates": Reader(make_templates, ("chat_template.jinja",), render),
    "templates in settings": Reader(write_tokenizer, ("tokenizer_config.json",), render),
    "tokenizer.json": Reader(byte_fallback, ("tokenizer.json", "tokenizer_config.json"), use_tokenizer),
    "tokenizer.model": Reader(sentencepiece, ("tokenizer.model",), use_tokenizer),
    "gguf": Reader(make_gguf, ("model.gguf",), read_gguf),
}


class Hang(BaseException):
    """A case took too long."""


@contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(read: Callable[[], object]) -> None:
    """Whether it reads, or says one sentence in time."""
    try:
        with in_time():
            read()
    except LitGPTError as error:
        sentence = str(error)
        assert len(sentence) < 3000, sentence[:300]
        assert sentence.isprintable(), repr(sentence)


def fuzz(cases: int, case: Callable[[Random], None]) -> None:
    """Runs cases, always the same ones, and looks at the memory that they leave behind."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def run(random: Random) -> None:
        case(random)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1000


def fuzz_reader(name: str, root: Path, cases: int) -> None:
    reader = READERS[name]
    make_hf_once(root / "hf")
    folder = root / "folder"
    folder.mkdir()
    reader.make(folder)
    reader.open(folder)  # as it is
    contents = {file: (folder / file).read_bytes() for file in reader.files}

    def case(random: Random) -> None:
        name = random.choice(reader.files)
        path = folder / name
        path.unlink()
        try:
            break_file(path, contents[name], random)
            check(lambda: reader.open(folder))
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(contents[name])

    fuzz(cases, case)


def make_hf_once(folder: Path) -> None:
    folder.mkdir()
    make_hf(folder)


@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    fuzz_reader(name, tmp_path, 60)


def fuzz_hub(monkeypatch: pytest.MonkeyPatch, cases: int) -> None:
    answer = {"_id": "1", "id": "org/name", "sha": "c" * 40, "private": False, "tags": [], "downloads": 1}
    answer["siblings"] = [
        {"rfilename": name, "size": 5, "blobId": "1"} for name in ("config.json", "model.safetensors")
    ]
    content, now = json.dumps(answer).encode(), [b""]

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=now[0], headers={"Content-Type": "application/json"})

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(respond)))

    def case(random: Random) -> None:
        now[0] = random.choice([broken_bytes, broken_json, broken_json])(content, random)
        check(lambda: look_up("org/name"))

    try:
        now[0] = content
        assert look_up("org/name").sizes == {"config.json": 5, "model.safetensors": 5}
        fuzz(cases, case)
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
        huggingface_hub.close_session()


def test_a_broken_answer_of_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_hub(monkeypatch, 60)


@pytest.mark.slow
def test_no_broken_answer_of_the_hub_is_more_than_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_hub(monkeypatch, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_no_broken_file_is_more_than_one_sentence(name: str, tmp_path: Path) -> None:
    fuzz_reader(name, tmp_path, 2000)
