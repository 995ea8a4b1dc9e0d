"""Blocks of GGUF files are llama.cpp's own (its library is in the package `xllamacpp`), and it opens the files."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.gguf.k_quants import ENCODERS, quantize_rows
from litgpt.scripts.quantize import quantize_checkpoint
from litgpt.tokenizer import Tokenizer
from tests.gguf_models import bpe_folder, hf_folder
from tests.parity.test_llama_cpp import compare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="needs llama.cpp as the package xllamacpp"
    ),
]
ROWS, COLUMNS = 64, 1536


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    """Numbers as weights have them, with rows and blocks that are zero, of one sign, equal, and far out."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    rows[3] = 0
    rows[4, :256] = 0
    rows[5] = rows[5].abs()
    rows[6] = -rows[6].abs()
    rows[7] = 0.25
    rows[8, ::100] *= 40
    return rows


def by_llama_cpp(rows: torch.Tensor, kind: str, importance: torch.Tensor | None) -> np.ndarray:
    """What llama.cpp's own quantizer makes of the same numbers."""
    import gguf
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    place, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, place, place, count, count, count, place]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    stored = gguf.GGMLQuantizationType[kind.upper()]
    block, nbytes = gguf.GGML_QUANT_SIZES[stored]
    made = np.zeros((len(rows), rows.size(1) // block * nbytes), dtype=np.uint8)
    given, by = rows.numpy().copy(), None if importance is None else importance.numpy().copy()
    address = None if by is None else by.ctypes.data
    library.ggml_quantize_chunk(int(stored), given.ctypes.data, made.ctypes.data, 0, len(rows), rows.size(1), address)
    return made


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "by-importance"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_blocks_are_llama_cpps_but_for_rounding(kind: str, weighted: bool, weights: torch.Tensor):
    """Sums in another order tip a few choices between scales that are as good."""
    import gguf
    from gguf.quants import dequantize

    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) ** 2 + 0.01 if weighted else None
    ours, theirs = quantize_rows(weights, kind, importance).numpy(), by_llama_cpp(weights, kind, importance)
    assert (ours == theirs).mean() > 0.97
    stored = gguf.GGMLQuantizationType[kind.upper()]
    cost = 1.0 if importance is None else importance.numpy()
    losses = [float((cost * (dequantize(made, stored) - weights.numpy()) ** 2).sum()) for made in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("kind", ["q4_k_m", "q6_k"])
def test_llama_cpp_computes_the_same_from_mixtures_of_blocks(kind: str, tmp_path: Path):
    sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2)  # one of Q4_K, one with Q6_K
    folder = hf_folder("llama", tmp_path / "hf", bpe_folder(tmp_path / "bpe"), **sizes)
    tensors = load_file(folder / "model.safetensors")
    tame = {name: tensor / 2 if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
    save_file(tame, folder / "model.safetensors", {"format": "pt"})
    quantize_checkpoint(folder, f"gguf-{kind}", out_dir=tmp_path)
    compare(tmp_path / f"model-{kind}.gguf", [5, 9, 33, 77, 120, 200, 7, 8], [], within=0.06)  # it rounds activations


def test_a_real_model_in_q4_k_m(tmp_path: Path, smollm2: Path):
    quantize_checkpoint(smollm2, "gguf-q4_k_m", out_dir=tmp_path)
    ids = Tokenizer(smollm2).encode_ids("The capital of France is Paris, and the capital of Spain is")
    compare(tmp_path / "model-q4_k_m.gguf", ids, ["Hello world"], within=0.1)
