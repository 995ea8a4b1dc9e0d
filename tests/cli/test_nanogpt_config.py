"""nanoGPT's configuration files, read and said in our arguments."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt.__main__ import main
from litgpt.cli.nanogpt_config import DEFAULTS, evaluate, parse_settings, read_nanogpt_config
from litgpt.cli.parser import parse
from litgpt.errors import UsageError
from litgpt.pretrain import setup

CHARACTERS = """
# values of config/train_shakespeare_char.py
out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
warmup_iters = 100
"""
FINETUNING = """
import time
out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = True
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20
learning_rate = 3e-5
decay_lr = False
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As nanoGPT's: `config/`, and `data/shakespeare_char/` with tokens of 65 characters."""
    data = tmp_path / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(65, size=900).astype("<u2")
    (data / "train.bin").write_bytes(tokens[:800].tobytes())
    (data / "val.bin").write_bytes(tokens[800:].tobytes())
    itos = dict(enumerate(chr(48 + number) for number in range(65)))
    meta = {"vocab_size": 65, "itos": itos, "stoi": {one: number for number, one in itos.items()}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    (tmp_path / "config").mkdir()
    return tmp_path


def written(folder: Path, text: str) -> str:
    file = folder / "config" / "mine.py"
    file.write_text(text)
    return str(file)


def parsed(*words: str) -> dict[str, Any]:
    return parse("pretrain", setup, words)


def test_the_characters_of_shakespeare(folder: Path) -> None:
    values = parsed("--nanogpt_config", written(folder, CHARACTERS), "--train.max_steps", "7", "--devices", "1")
    train, model = values["train"], values["model_config"]
    assert (train.global_batch_size, train.micro_batch_size, train.max_steps, train.max_tokens) == (64, 64, 7, None)
    assert (train.dropout, train.max_norm, train.min_lr, train.lr_warmup_steps) == (0.2, 1.0, 1e-4, 100)
    assert train.keep_best and train.save_interval is None and values["logger_name"] == "csv"
    assert (model.n_layer, model.n_head, model.n_embd) == (6, 6, 384)
    assert (model.block_size, model.padded_vocab_size) == (256, 65)
    assert model.learned_positions and model.tie_embeddings and not model.bias and not model.norm_bias
    assert values["optimizer"]["init_args"] == {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}
    assert values["data"].data_path == folder / "data" / "shakespeare_char"
    assert (values["eval"].interval, values["eval"].max_iters) == (250, 200)


def test_finetuning_starts_from_gpt2_at_one_rate_and_names_no_run(folder: Path) -> None:
    values = parsed("--nanogpt_config", written(folder, FINETUNING))
    assert values["initial_checkpoint_dir"] == Path("openai-community/gpt2-xl") and values["model_config"] is None
    train = values["train"]
    assert (train.lr_schedule, train.lr_warmup_steps, train.global_batch_size) == ("constant", 0, 32)
    assert (values["log"].project, values["log"].run, values["logger_name"]) == ("shakespeare", None, "wandb")


def test_a_run_by_such_a_file_trains(folder: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> None:
    monkeypatch.chdir(folder)
    small = "n_layer = 1\nn_head = 2\nn_embd = 8\nblock_size = 16\nbatch_size = 4\nmax_iters = lr_decay_iters = 2\n"
    file = written(folder, CHARACTERS + small + "warmup_iters = 0\neval_interval = 2\ndtype = 'float32'\n")
    assert main(["pretrain", "--nanogpt_config", file, "--devices", "1", "--quiet"]) == 0
    assert (folder / "out-shakespeare-char" / "final" / "lit_model.pth").is_file()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import os", "line 1: nothing is imported or run"),
        ("from subprocess import run", "line 1: nothing is imported or run"),
        ("\nlearning_rate = float('1e-3')", r"line 2: learning_rate is not a value or arithmetic \(`float\('1e-3'\)`"),
        ("max_iters = __import__('os').getpid()", "line 1: max_iters is not a value"),
        ("batch_sise = 3", "nanoGPT has no setting 'batch_sise'. Closest: batch_size"),
        ("batch_size = 'many'", "line 1: batch_size is a whole number, not 'many'"),
        ("bias = 1", "line 1: bias is True or False, not 1"),
        ("if True:\n  batch_size = 3", "line 1: only `name = value` lines are read"),
        ("batch_size, block_size = 3, 4", "only `name = value` lines"),
        ("batch_size = 2 ** 10 ** 10", "the exponent is too large"),
        ("out_dir = 'x' * 10**9", "texts and numbers don't mix"),
        ("batch_size = 1 / 0", "division by zero"),
        ("batch_size = ", "line 1: this is no Python"),
        ("eval_only = True", "`litgpt evaluate MODEL --tasks perplexity:FILE`"),
        ("init_from = 'llama'", "init_from is scratch, resume or a gpt2, not 'llama'"),
        ("dtype = 'int8'", "dtype is float32, bfloat16 or float16"),
        ("max_iters = 5", r"lr_decay_iters \(600,000\) is not max_iters \(5\)"),
    ],
)
def test_what_can_not_be_taken_is_refused_by_its_line(text: str, sentence: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        parsed("--nanogpt_config", written(folder, text))


def test_every_setting_has_a_meaning_or_is_known_to_have_none(folder: Path) -> None:
    """What changes no argument: the device and back end, which are found, and settings that others switch on."""
    changed = {int: lambda value: value + 1, float: lambda value: value / 2 + 0.1, bool: lambda value: not value}
    texts = {"init_from": "gpt2", "dtype": "float16"}
    base = parse_settings("max_iters = 10\nlr_decay_iters = 10\nwandb_log = True", "f")
    silent = set()
    for name, default in DEFAULTS.items():
        if name in ("eval_only", "lr_decay_iters", "max_iters", "wandb_log"):
            continue
        value = changed[type(default)](default) if type(default) in changed else texts.get(name, "other")
        before, after = (
            read_nanogpt_config(written(folder, "\n".join(f"{key} = {one!r}" for key, one in settings.items())))
            for settings in (base, {**base, name: value})
        )
        if before == after:
            silent.add(name)
    assert silent == {"backend", "device"}


@given(st.recursive(st.integers(-99, 99), lambda part: st.tuples(part, st.sampled_from("+-*"), part), max_leaves=8))
def test_arithmetic_is_pythons(tree: Any) -> None:
    import ast

    def spelled(part: Any) -> str:
        return str(part) if isinstance(part, int) else f"({spelled(part[0])} {part[1]} {spelled(part[2])})"

    value = eval(spelled(tree))
    if abs(value) < 10**15:
        assert evaluate(ast.parse(spelled(tree), mode="eval").body, {}) == value
