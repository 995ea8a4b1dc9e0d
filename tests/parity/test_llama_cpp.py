"""llama.cpp itself opens the GGUF files written here, and computes and tokenises the same (package `xllamacpp`)."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from litgpt.checkpoint.gguf.writer import write_gguf
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.tokenizer import Tokenizer, save_tokenizer
from tests.gguf_models import FAMILY_CASES, TEXTS, bpe_folder, hf_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="needs llama.cpp as the package xllamacpp"
    ),
]

WITHOUT_WINDOW = ("mistral-window", "phi3-window")
"""llama.cpp computes these as if attention had none."""
ASK = """
import json, os, socket, sys, urllib.request
import xllamacpp

path, prompts, texts = json.loads(sys.stdin.read())
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 512, 1, False, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    parameters.port = free.getsockname()[1]
out = os.fdopen(os.dup(1), "w")
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
server = xllamacpp.Server(parameters)

def post(place, **body):
    request = urllib.request.Request(
        server.listening_address.rstrip("/") + place, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.loads(urllib.request.urlopen(request).read())

asked = dict(n_predict=1, temperature=0.0, n_probs=8, cache_prompt=False)
first = [post("/completion", prompt=prompt, **asked).get("completion_probabilities", []) for prompt in prompts]
ids = [post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in texts]
json.dump([first, ids], out)
out.flush()
os._exit(0)
"""


def ask(path: Path, prompts: list[list[int]], texts: list[str]) -> tuple[list[dict[int, float]], list[list[int]]]:
    """llama.cpp's best log-probabilities after each prompt (none where it shows no whole character), and texts' ids."""
    told = json.dumps([str(path), prompts, texts])
    done = subprocess.run([sys.executable, "-c", ASK], input=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, ids = json.loads(done.stdout)
    return [{top["id"]: top["logprob"] for step in steps for top in step["top_logprobs"]} for steps in first], ids


@torch.inference_mode()
def compare(path: Path, ids: list[int], texts: list[str], within: float) -> None:
    model = load_model(path, dtype=torch.float32)
    ours = model(torch.tensor([ids]))[0].log_softmax(-1)
    theirs, their_ids = ask(path, [ids[: end + 1] for end in range(len(ids))], texts)
    assert their_ids == Tokenizer(find_checkpoint(path).dir).encode_batch(texts, bos=False)
    assert sum(map(len, theirs)) >= 4 * len(ids)
    for row, best in zip(ours, theirs, strict=True):
        for token, logprob in best.items():
            assert abs(row[token].exp() - math.exp(logprob)) < within


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("case", [case for case in FAMILY_CASES if case not in WITHOUT_WINDOW])
def test_llama_cpp_computes_the_same(case: str, dtype: str, tmp_path: Path):
    changes: dict[str, Any] = FAMILY_CASES[case]
    folder = hf_folder(case, tmp_path / "hf", bpe_folder(tmp_path / "bpe"), **changes)
    write_gguf(folder, tmp_path / "a.gguf", dtype)
    ids = [5, 9, 33, 77, 120, 200, 7, 8, 9, 10, 11, 250]
    compare(tmp_path / "a.gguf", ids, TEXTS, within=0.01)  # its keys and values are float16, its GELU a table


def test_llama_cpp_computes_the_same_from_8_bits(tmp_path: Path):
    folder = hf_folder("llama", tmp_path / "hf", bpe_folder(tmp_path / "bpe"), hidden_size=64, intermediate_size=96)
    write_gguf(folder, tmp_path / "a.gguf", "q8_0")
    compare(tmp_path / "a.gguf", [5, 9, 33, 77, 120, 200, 7, 8], TEXTS, within=0.04)  # it rounds activations to 8 bits


def cut_alike(cut: PreTokenizer, text: str) -> bool:
    """Whether llama.cpp cuts a text as the original tokenizer does: Falcon's takes some bytes beyond ASCII for digits,
    and those that tell capitals from small letters know combining marks."""
    marks = any(unicodedata.category(character).startswith("M") for character in text)
    return text.isascii() if cut.steps else not (marks and r"\p{Lu}" in "".join(cut.patterns))


@pytest.mark.parametrize("cut", [cut for cut in PRE_TOKENIZERS if not cut.nfc], ids=lambda cut: cut.names[-1])
def test_llama_cpp_cuts_text_the_same(cut: PreTokenizer, tmp_path: Path, shared_assets: Path):
    """Of a tokenizer whose tokens go across all words; so where it is cut shows."""
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models, pre_tokenizers, trainers

    vectors = (shared_assets / "tokenizers" / "golden_vectors" / "llama-bpe.inp").read_text(encoding="utf-8")
    texts = ["1234567 a1b22c333 x.y,z's I'LL ---- \r\n\r\n\t ", *vectors.split("\n__ggml_vocab_test__\n")]
    texts = [text for text in texts if cut_alike(cut, text)]
    processor = Processor(models.BPE())
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    processor.train_from_iterator([*texts, *texts], trainer)
    processor.model.ignore_merges = cut.ignore_merges
    cut.apply_to(processor)
    processor.decoder = decoders.ByteLevel()
    save_tokenizer(processor, tmp_path / "bpe")
    write_gguf(hf_folder("llama", tmp_path / "hf", tmp_path / "bpe", vocab_size=2048), tmp_path / "a.gguf", "f32")
    assert ask(tmp_path / "a.gguf", [], texts)[1] == Tokenizer(tmp_path / "bpe").encode_batch(texts)


@pytest.mark.parametrize("dtype", ["as it is", "f16"])
def test_llama_cpp_and_a_real_model(dtype: str, tmp_path: Path, smollm2: Path, shared_assets: Path):
    path = smollm2 / "model.gguf"
    if dtype != "as it is":
        path = tmp_path / "a.gguf"
        write_gguf(smollm2, path, dtype)
    text = (shared_assets / "text" / "tinyshakespeare.txt").read_text()
    ids = Tokenizer(smollm2).encode_ids("The capital of France is Paris, and the capital of Spain is")
    compare(path, ids, [*TEXTS, *text.splitlines()[:100]], within=0.1 if dtype == "as it is" else 0.01)
