"""GGUF files: read like any other checkpoint, written so that they mean the same, and a sentence for what can't be."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from litgpt import families
from litgpt.checkpoint.gguf.reader import open_gguf, pair, rope_factors, unpair, with_rope_factors
from litgpt.checkpoint.gguf.writer import write_gguf
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model, open_weights
from litgpt.config import Config, name_to_config
from litgpt.errors import LitGPTError
from litgpt.families.gguf import share
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from tests.gguf_models import FAMILY_CASES, TEXTS, VOCABULARY, bpe_folder, hf_folder
from tests.tiny import CASES

TOKENS = torch.arange(3, 23)[None]


# -- small models with a tokenizer


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    """A small byte-level tokenizer."""
    return bpe_folder(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe) -> Path:
    """A small Llama; rows of 32 and 48 weights."""
    return hf_folder("llama", tmp_path_factory.mktemp("llama"), bpe)


@pytest.fixture(scope="module")
def file(tmp_path_factory, folder) -> Path:
    """The same, as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(folder, path, "f32")
    return path


def rewrite(source: Path, target: Path, edit) -> Path:
    """The file with its metadata and tensors changed by `edit(metadata, tensors)`; tensors as `(array, type)`."""
    reader = gguf.GGUFReader(source)
    metadata = {
        key: (field.contents(), field.types) for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    tensors = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    values = {key: value for key, (value, _) in metadata.items()}
    edit(values, tensors)
    writer = gguf.GGUFWriter(target, values.pop("general.architecture"))
    of = gguf.GGUFValueType.get_type
    for key, value in values.items():
        kinds = [of(value), of(value[0])] if isinstance(value, list) else [of(value)]
        writer.add_key_value(key, value, *(metadata[key][1] if value == metadata.get(key, [None])[0] else kinds))
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


# -- there and back, family by family


@torch.inference_mode()
@pytest.mark.parametrize("case", FAMILY_CASES)
def test_a_file_computes_what_its_model_does(case, tmp_path, bpe):
    folder = hf_folder(case, tmp_path / "hf", bpe, **FAMILY_CASES[case])
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    model, expected = load_model(tmp_path / "a.gguf"), load_model(folder)
    torch.testing.assert_close(model(TOKENS), expected(TOKENS), rtol=1e-6, atol=1e-6)
    assert model.tied == expected.tied
    assert model.config.family_name == expected.config.family_name or case == "mistral"


def test_every_family_with_a_gguf_row_is_tried():
    tried = {Config.from_hf(hf_config(case)).family_name for case in FAMILY_CASES}
    assert tried == set(families.AS_GGUF)


def hf_config(case: str) -> dict[str, Any]:
    import transformers

    name, settings = CASES[case]
    config = getattr(transformers, name)(**{**settings, **FAMILY_CASES[case]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype="bfloat16")
    return {**config.to_dict(), "architectures": [type(model).__name__]}


@pytest.mark.parametrize("case", ["gemma", "gemma3"])
def test_norms_of_one_plus_their_weight_are_stored_with_the_one(case, tmp_path, bpe):
    folder = hf_folder(case, tmp_path, bpe, **FAMILY_CASES[case])
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    stored = open_gguf(tmp_path / "a.gguf").tensor("output_norm.weight")
    torch.testing.assert_close(stored, load_model(folder).transformer.ln_f.weight + 1)


def test_rows_of_queries_and_keys_are_paired_as_llama_cpp_rotates_them(folder, file):
    stored = open_gguf(file).tensor("blk.0.attn_q.weight")
    ours = load_model(folder).transformer.h[0].attn.qkv.weight
    H = 8
    for head in range(4):
        for d in range(H // 2):
            assert torch.equal(stored[head * H + 2 * d], ours[head * H + d])
            assert torch.equal(stored[head * H + 2 * d + 1], ours[head * H + d + H // 2])


def test_what_opens_it_again_is_the_file_and_not_its_temporary_folder(folder, file):
    checkpoint = find_checkpoint(file)
    assert checkpoint.path == file and checkpoint.dir != file.parent
    assert find_checkpoint(folder).path == folder


def test_pairing_is_undone():
    for tensor in (torch.randn(24, 5), torch.randn(24)):
        assert torch.equal(unpair(pair(tensor, 3), 3), tensor)


def test_a_checkpoint_of_litgpt_is_written_too(tmp_path, bpe):
    config = Config.from_name(
        "pythia-14m", n_layer=2, n_embd=32, n_head=4, intermediate_size=48, padded_vocab_size=VOCABULARY, block_size=32
    )
    torch.manual_seed(0)
    shutil.copytree(bpe, tmp_path, dirs_exist_ok=True)
    torch.save(GPT(config).state_dict(), tmp_path / "lit_model.pth")
    config.save(tmp_path)
    write_gguf(tmp_path, tmp_path / "a.gguf", "f32")
    torch.testing.assert_close(load_model(tmp_path / "a.gguf")(TOKENS), load_model(tmp_path)(TOKENS))


def test_a_named_size_is_recognised(tmp_path, bpe, monkeypatch):
    config = Config.from_name("Llama-3.2-1B", n_layer=1, n_embd=64, n_head=2, n_query_groups=1, intermediate_size=32)
    row = {**name_to_config["Llama-3.2-1B"], "n_layer": 1, "n_embd": 64, "n_head": 2, "n_query_groups": 1}
    row.update(intermediate_size=32, vocab_size=300, padded_vocab_size=VOCABULARY)
    monkeypatch.setitem(name_to_config, "Llama-3.2-1B", row)
    config = Config.from_name("Llama-3.2-1B")
    shutil.copytree(bpe, tmp_path, dirs_exist_ok=True)
    torch.save(GPT(config).state_dict(), tmp_path / "lit_model.pth")
    config.save(tmp_path)
    write_gguf(tmp_path, tmp_path / "a.gguf")
    spaced = rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", lambda m, t: m.update({"general.name": "Llama 3.2 1B"}))
    for path in (tmp_path / "a.gguf", spaced):
        assert find_checkpoint(path).config == config


# -- tensor types, against a slow reading of https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c


def f16(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def slow_q8_0(b: bytes) -> list[float]:
    return [f16(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def slow_4_or_5_bits(b: bytes, has_minimum: bool, has_fifth: bool) -> list[float]:
    at = 4 if has_minimum else 2
    high = int.from_bytes(b[at : at + 4], "little") if has_fifth else 0
    nibbles = b[at + 4 if has_fifth else at :]
    quants = [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]
    quants = [q | (high >> i & 1) << 4 for i, q in enumerate(quants)]
    if has_minimum:
        return [f16(b, 0) * q + f16(b, 2) for q in quants]
    return [f16(b, 0) * (q - (16 if has_fifth else 8)) for q in quants]


def slow_k(b: bytes, has_fifth: bool) -> list[float]:
    """Q4_K and Q5_K: eight blocks of 32 with scales and minima of six bits each."""
    d, dmin, s = f16(b, 0), f16(b, 2), b[4:16]
    fifth, nibbles = (b[16:48], b[48:]) if has_fifth else (bytes(32), b[16:])
    values = []
    for block in range(8):
        if block < 4:
            scale, minimum = s[block] & 63, s[block + 4] & 63
        else:
            scale = s[block + 4] & 15 | s[block - 4] >> 6 << 4
            minimum = s[block + 4] >> 4 | s[block] >> 6 << 4
        for i in range(32):
            byte = nibbles[block // 2 * 32 + i]
            q = (byte >> 4 if block % 2 else byte & 15) | (fifth[i] >> block & 1) << 4
            values.append(d * scale * q - dmin * minimum)
    return values


def slow_q6_k(b: bytes) -> list[float]:
    low, high, scales, d = b[:128], b[128:192], struct.unpack_from("<16b", b, 192), f16(b, 208)
    values = []
    for i in range(256):
        half, quarter, j = i // 128, i % 128 // 32, i % 32
        byte = low[half * 64 + quarter % 2 * 32 + j]
        q = (byte >> 4 if quarter > 1 else byte & 15) | (high[half * 32 + j] >> 2 * quarter & 3) << 4
        values.append(d * scales[i // 16] * (q - 32))
    return values


def slow_mxfp4(b: bytes) -> list[float]:
    values = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    codes = [byte & 15 for byte in b[1:]] + [byte >> 4 for byte in b[1:]]
    return [values[code & 7] * (-1 if code & 8 else 1) * 2.0 ** (b[0] - 127) for code in codes]


def slow_q2_k(b: bytes) -> list[float]:
    scales, quants, d, dmin = b[:16], b[16:80], f16(b, 80), f16(b, 82)
    values = []
    for i in range(256):
        half, quarter, j = i // 128, i % 128 // 32, i % 32
        scale = scales[i // 16]
        values.append(d * (scale & 15) * (quants[half * 32 + j] >> 2 * quarter & 3) - dmin * (scale >> 4))
    return values


def slow_q3_k(b: bytes) -> list[float]:
    high, quants, scales, d = b[:32], b[32:96], b[96:108], f16(b, 108)
    values = []
    for i in range(256):
        half, quarter, j, part = i // 128, i % 128 // 32, i % 32, i // 16
        low = scales[part] & 15 if part < 8 else scales[part - 8] >> 4
        scale = (low | (scales[8 + part % 4] >> 2 * (part // 4) & 3) << 4) - 32
        q = (quants[half * 32 + j] >> 2 * quarter & 3) - (0 if high[j] >> (half * 4 + quarter) & 1 else 4)
        values.append(d * scale * q)
    return values


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def slow_iq4_nl(b: bytes) -> list[float]:
    return [f16(b, 0) * IQ4[code] for code in [byte & 15 for byte in b[2:]] + [byte >> 4 for byte in b[2:]]]


def slow_iq4_xs(b: bytes) -> list[float]:
    d, high, low, values = f16(b, 0), int.from_bytes(b[2:4], "little"), b[4:8], []
    for block in range(8):
        scale = (low[block // 2] >> 4 * (block % 2) & 15 | (high >> 2 * block & 3) << 4) - 32
        codes = b[8 + 16 * block : 24 + 16 * block]
        values += [d * scale * IQ4[code] for code in [c & 15 for c in codes] + [c >> 4 for c in codes]]
    return values


def slow_tq2_0(b: bytes) -> list[float]:
    return [f16(b, 64) * ((b[at + j] >> 2 * n & 3) - 1) for at in (0, 32) for n in range(4) for j in range(32)]


def slow_tq1_0(b: bytes) -> list[float]:
    places = [(j, n) for n in range(5) for j in range(32)] + [(32 + j, n) for n in range(5) for j in range(16)]
    places += [(48 + j, n) for n in range(4) for j in range(4)]
    return [f16(b, 52) * (((b[at] * 3**n & 255) * 3 >> 8) - 1) for at, n in places]


SLOW = {
    "Q2_K": slow_q2_k,
    "Q3_K": slow_q3_k,
    "IQ4_NL": slow_iq4_nl,
    "IQ4_XS": slow_iq4_xs,
    "TQ1_0": slow_tq1_0,
    "TQ2_0": slow_tq2_0,
    "Q8_0": slow_q8_0,
    "Q4_0": lambda b: slow_4_or_5_bits(b, False, False),
    "Q4_1": lambda b: slow_4_or_5_bits(b, True, False),
    "Q5_0": lambda b: slow_4_or_5_bits(b, False, True),
    "Q5_1": lambda b: slow_4_or_5_bits(b, True, True),
    "Q4_K": lambda b: slow_k(b, False),
    "Q5_K": lambda b: slow_k(b, True),
    "Q6_K": slow_q6_k,
    "MXFP4": slow_mxfp4,
}
SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_quantised_tensor_is_what_a_slow_reading_of_its_blocks_gives(kind, tmp_path, file):
    stored = gguf.GGMLQuantizationType[kind]
    numbers, size = gguf.GGML_QUANT_SIZES[stored]
    blocks = np.random.default_rng(0).integers(0, 256, (3, 2 * size), dtype=np.uint8)  # (rows, bytes of two blocks)
    for row in blocks:
        for start in (0, size):
            for at in SCALES_AT.get(kind, (0,)):
                row[start + at : start + at + 2] = np.frombuffer(
                    np.float16(0.01 * (at + start + 1)).tobytes(), np.uint8
                )
    path = rewrite(file, tmp_path / "a.gguf", lambda m, t: t.update(new=(blocks, stored)))
    slow = [[v for at in (0, size) for v in SLOW[kind](row[at : at + size].tobytes())] for row in blocks]
    found = open_gguf(path).tensor("new")
    assert found.shape == (3, 2 * numbers)
    torch.testing.assert_close(found, torch.tensor(slow), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_model_of_each_type_is_near_the_one_it_was_made_of(kind, tmp_path, bpe):
    folder = hf_folder("llama", tmp_path / "hf", bpe, hidden_size=64, intermediate_size=96)
    write_gguf(folder, tmp_path / "wide.gguf", "f32")
    stored = gguf.GGMLQuantizationType[kind]

    def narrow(metadata, tensors):
        for name, (array, _) in tensors.items():
            if array.ndim == 2:
                tensors[name] = (quantize(array, stored), stored)

    path = rewrite(tmp_path / "wide.gguf", tmp_path / "narrow.gguf", narrow)
    found, expected = load_model(path, dtype=torch.float32).state_dict(), load_model(folder).state_dict()
    worst = {"F32": 0.0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.01, "Q4_0": 0.2, "Q4_1": 0.2, "Q5_0": 0.1, "Q5_1": 0.1}
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= worst[kind] * tensor.abs().max(), name


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_a_tensor_of_codebooks_is_what_the_package_makes_of_it(kind, tmp_path, file):
    stored = gguf.GGMLQuantizationType[kind]
    numbers, size = gguf.GGML_QUANT_SIZES[stored]
    blocks = np.random.default_rng(0).integers(0, 60, (3, 2 * size), dtype=np.uint8)  # small bytes: finite scales
    path = rewrite(file, tmp_path / "a.gguf", lambda m, t: t.update(new=(blocks, stored)))
    found = open_gguf(path).tensor("new")
    assert found.shape == (3, 2 * numbers) and found.dtype == torch.float32 and found.isfinite().all()
    np.testing.assert_array_equal(found.numpy(), dequantize(blocks, stored))


def test_a_type_that_is_not_read_is_named(tmp_path, file):
    blocks = np.zeros((VOCABULARY, 36), np.uint8)
    path = rewrite(file, tmp_path / "a.gguf", lambda m, t: t.update({"odd": (blocks, gguf.GGMLQuantizationType.NVFP4)}))
    with pytest.raises(LitGPTError, match="'odd' in .* is of the type NVFP4, which is not read here"):
        open_gguf(path).tensor("odd")


@pytest.mark.parametrize(("dtype", "expected"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_model_is_loaded_in_the_type_its_matrices_have(dtype, expected, tmp_path, bpe):
    folder = hf_folder("llama", tmp_path / "hf", bpe)
    config = json.loads((folder / "config.json").read_text())
    model = load_model(folder, dtype=expected)  # norms that fit the type
    (tmp_path / "lit").mkdir()
    shutil.copytree(bpe, tmp_path / "lit", dirs_exist_ok=True)
    torch.save(model.state_dict(), tmp_path / "lit" / "lit_model.pth")
    model.config.save(tmp_path / "lit")
    write_gguf(tmp_path / "lit", tmp_path / "a.gguf", dtype)
    loaded = load_model(tmp_path / "a.gguf").state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {expected}
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert config["vocab_size"] == VOCABULARY


def test_norms_that_do_not_fit_the_matrices_type_are_not_rounded(tmp_path, folder):
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    model = load_model(tmp_path / "a.gguf")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.ln_f.weight, load_model(folder).transformer.ln_f.weight)


def test_weights_can_be_trained_without_touching_the_file(tmp_path, file):
    path = Path(shutil.copy(file, tmp_path))
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_model(path).parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before
    assert torch.equal(load_model(path)(TOKENS), load_model(file)(TOKENS))


def test_tensors_are_read_when_they_are_asked_for(tmp_path, folder, monkeypatch):
    write_gguf(folder, tmp_path / "a.gguf", "q8_0")
    read = []
    real = gguf.quants.dequantize
    monkeypatch.setattr("gguf.quants.dequantize", lambda data, kind: read.append(data.shape) or real(data, kind))
    weights = open_weights(find_checkpoint(tmp_path / "a.gguf"))
    assert "transformer.h.0.attn.qkv.weight" in weights.names
    assert not read
    weights.fetch("transformer.h.0.attn.qkv.weight")
    assert len(read) == 3


# -- stretched RoPE


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.2-1B", "Llama-3.2-3B"])
def test_llama_3_scaling_is_told_from_its_factors(name):
    config = Config.from_name(name)
    factors = rope_factors(config)
    assert factors is not None
    config.rope_adjustments = None
    assert with_rope_factors(config, factors) == Config.from_name(name)


@pytest.mark.parametrize("factors", [torch.arange(1.0, 65.0), torch.full((64,), 2.0), torch.ones(3)])
def test_other_factors_are_refused(factors):
    config = Config.from_name("Llama-2-7b-hf")
    if len(factors) == 3:
        factors = factors + torch.arange(3)
    with pytest.raises(LitGPTError, match="rope_freqs.weight"):
        with_rope_factors(config, factors)


def test_factors_of_one_change_nothing():
    config = Config.from_name("Llama-2-7b-hf")
    assert with_rope_factors(config, torch.ones(64)) is config


def test_a_share_of_dimensions_is_exact():
    assert all(int(share(part, whole) * whole) == part for whole in range(2, 300) for part in range(2, whole + 1, 2))


# -- the head


@pytest.mark.parametrize(("plus", "tied"), [(0.0, True), (1.0, False)])
def test_a_head_that_is_the_embedding_byte_for_byte_is_tied(plus, tied, tmp_path, file):
    def repeat(metadata, tensors):
        array, kind = tensors["token_embd.weight"]
        tensors["output.weight"] = (array + np.float32(plus), kind)

    assert load_model(rewrite(file, tmp_path / "a.gguf", repeat)).tied is tied


# -- what is found where


def test_a_folder_with_one_gguf_file_is_a_checkpoint(tmp_path, file):
    shutil.copy(file, tmp_path / "any name.gguf")
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.kind == "gguf"
    assert torch.equal(load_model(tmp_path)(TOKENS), load_model(file)(TOKENS))


def test_other_weights_in_the_folder_come_first(tmp_path, folder, file):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(file, tmp_path)
    assert find_checkpoint(tmp_path).kind == "hf"


def test_of_several_files_one_must_be_named(tmp_path, file):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(LitGPTError, match=r"several GGUF files; give the path of one: a\.gguf, b\.gguf"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "b.gguf").kind == "gguf"


def test_tokenizer_files_beside_it_count_more_in_a_folder(tmp_path, file, bpe):
    shutil.copy(file, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("hello")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    whole, alone = find_checkpoint(tmp_path), find_checkpoint(tmp_path / file.name)
    assert (whole.dir / "chat_template.jinja").read_text() == "hello"
    assert 7 in Tokenizer(whole.dir).stop_ids
    assert not (alone.dir / "chat_template.jinja").exists()


def test_a_tokenizer_that_is_not_known_needs_one_beside_it(tmp_path, folder, file, bpe):
    path = rewrite(file, tmp_path / "a.gguf", lambda m, t: m.update({"tokenizer.ggml.pre": "klingon"}))
    with pytest.raises(LitGPTError, match="'klingon' does, which is not known here"):
        find_checkpoint(path)
    shutil.copy(bpe / "tokenizer.json", tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    assert Tokenizer(checkpoint.dir).encode_ids("hello") == Tokenizer(bpe).encode_ids("hello")
    assert Tokenizer(checkpoint.dir).stop_ids == Tokenizer(folder).stop_ids


def test_the_temporary_folder_goes_when_the_process_ends(file):
    import subprocess

    code = f"from litgpt.checkpoint.layout import find_checkpoint; print(find_checkpoint({str(file)!r}).dir)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert folder.name == "tiny"
    assert not folder.parent.exists()


def split(file: Path, folder: Path) -> list[Path]:
    """The file as llama.cpp splits it: metadata in the first part, tensors over all."""
    paths = [folder / f"tiny-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    for number, path in enumerate(paths):

        def take(metadata, tensors, number=number):
            for i, name in enumerate(sorted(tensors)):
                if i % 3 != number:
                    del tensors[name]
            if number:
                for key in [key for key in metadata if key != "general.architecture"]:
                    del metadata[key]
            metadata.update({"split.no": number, "split.count": 3})

        rewrite(file, path, take)
    return paths


def test_a_model_in_several_parts(tmp_path, file):
    paths = split(file, tmp_path)
    for path in (paths[0], paths[2], tmp_path):
        checkpoint = find_checkpoint(path)
        assert checkpoint.files == tuple(paths)
        assert torch.equal(load_model(checkpoint)(TOKENS), load_model(file)(TOKENS))
    (tmp_path / "two").mkdir()
    for path in (paths[0], paths[2]):
        shutil.copy(path, tmp_path / "two")
    with pytest.raises(LitGPTError, match="tiny-00002-of-00003.gguf is not there"):
        find_checkpoint(tmp_path / "two")


# -- what is wrong, in one sentence


def edited(key: str, value: Any):
    return lambda metadata, tensors: metadata.update({key: value})


def dropped(key: str):
    return lambda metadata, tensors: (metadata.pop(key, None), tensors.pop(key, None))


def renamed(metadata, tensors):
    tensors["blk.0.attn_sinks.weight"] = tensors["blk.0.attn_norm.weight"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            edited("general.architecture", "llamba"),
            "the architecture 'llamba', which is not read here.* Closest: llama",
        ),
        (edited("general.type", "adapter"), "no model but what GGUF calls 'adapter'"),
        (edited("llama.expert_count", 8), "no `llama.expert_used_count`, which a model of its architecture needs"),
        (edited("llama.attention.scale", 0.1), "`llama.attention.scale`: 0.1[0-9]*, which is not known here"),
        (edited("llama.logit_scale", 0.5), "`llama.logit_scale`: 0.5"),
        (edited("llama.rope.scaling.type", "longrope"), "RoPE scaling of kind 'longrope'"),
        (edited("llama.rope.scaling.type", "yarn"), r"no `llama\.rope\.scaling\.factor`, which YaRN needs"),
        (edited("llama.rope.scaling.factor", 4.0), "`llama.rope.scaling.factor` but doesn't say"),
        (edited("llama.rope.dimension_count", 4), "rotates 4 of 8 dimensions"),
        (edited("llama.attention.value_length", 4), "values of another size"),
        (edited("llama.attention.causal", False), "not causal"),
        (edited("llama.attention.head_count", [4, 4, 2]), "`llama.attention.head_count` differs between layers"),
        (edited("llama.rope.freq_base", "high"), "is no GGUF file of a model"),
        (edited("llama.attention.head_count", 0), "n_head is 0"),
        (dropped("llama.block_count"), "no `llama.block_count`"),
        (dropped("token_embd.weight"), "no tensor 'token_embd.weight'"),
        (dropped("blk.1.ffn_up.weight"), r"no tensor 'blk\.1\.ffn_up\.weight'"),
        (renamed, r"'blk\.0\.attn_sinks\.weight' that LlamaForCausalLM has no place for"),
        (edited("tokenizer.ggml.model", "bert"), "a tokenizer of the kind 'bert'"),
        (dropped("tokenizer.ggml.pre"), "doesn't say how text is cut"),
        (dropped("tokenizer.ggml.merges"), "no `tokenizer.ggml.merges`"),
    ],
)
def test_what_is_not_known_is_named(edit, named, tmp_path, file):
    with pytest.raises(LitGPTError, match=named):
        load_model(rewrite(file, tmp_path / "a.gguf", edit))


@pytest.mark.parametrize(
    "edit",
    [
        edited("llama.attention.head_count", [4, 4, 4]),
        edited("llama.expert_count", 0),
        edited("llama.rope.scaling.type", "none"),
        edited("quantize.imatrix.dataset", "wiki"),
        dropped("llama.attention.key_length"),
        dropped("llama.rope.dimension_count"),
        dropped("general.name"),
    ],
)
@torch.inference_mode()
def test_what_changes_nothing_is_read(edit, tmp_path, file):
    path = rewrite(file, tmp_path / "a.gguf", edit)
    torch.testing.assert_close(load_model(path)(TOKENS), load_model(file)(TOKENS))


@pytest.mark.parametrize("keep", [0, 3, 30, 500, 5000, -100])
def test_a_truncated_file(tmp_path, file, keep):
    (tmp_path / "a.gguf").write_bytes(file.read_bytes()[:keep])
    with pytest.raises(LitGPTError, match=r"a\.gguf is damaged or no GGUF file"):
        load_model(tmp_path / "a.gguf")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4" + bytes(500))
    with pytest.raises(LitGPTError, match=r"a\.gguf is damaged or no GGUF file \(GGUF magic invalid\)"):
        find_checkpoint(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(LitGPTError, match=r"no checkpoint folder .*a\.gguf"):
        find_checkpoint(tmp_path / "a.gguf")


def test_without_the_package_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LitGPTError, match=r"pip install 'litgpt\[gguf\]'"):
        find_checkpoint(tmp_path)


# -- tokenizers


def same_tokenizer(first: Tokenizer, second: Tokenizer, texts: list[str]) -> None:
    for bos in (None, False):
        assert first.encode_batch(texts, bos=bos) == second.encode_batch(texts, bos=bos)
    ids = first.encode_batch(texts, bos=False)
    for skip in (True, False):
        assert [first.decode(row, skip) for row in ids] == [second.decode(row, skip) for row in ids]
    assert (first.bos_id, first.stop_ids, len(first)) == (second.bos_id, second.stop_ids, len(second))


def test_the_tokenizer_in_a_file_gives_the_same_ids(folder, file):
    same_tokenizer(Tokenizer(folder), Tokenizer(find_checkpoint(file).dir), [*TEXTS, "plain<|a|> explain"])


def test_chat_templates_go_through(tmp_path, folder, bpe):
    from litgpt.prompts.chat_template import read_templates

    assert read_templates(find_checkpoint(folder).dir) == read_templates(bpe)
    copy = shutil.copytree(folder, tmp_path / "named")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    settings["add_bos_token"] = True
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 8], "bos_token_id": 0}')
    write_gguf(copy, tmp_path / "a.gguf")
    opened = find_checkpoint(tmp_path / "a.gguf").dir
    assert read_templates(opened) == {"default": "a", "tool_use": "b"}
    assert Tokenizer(opened).stop_ids == Tokenizer(copy).stop_ids
    assert Tokenizer(opened).use_bos


@pytest.mark.parametrize("leave_out", [[], ["tokenizer.json"]], ids=["tokenizer.json", "tokenizer.model"])
def test_a_sentencepiece_tokenizer_goes_through(leave_out, tmp_path, stories260k, shared_assets):
    folder = shutil.copytree(stories260k, tmp_path / "stories")
    for name in leave_out:
        (folder / name).unlink()
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    opened = find_checkpoint(tmp_path / "a.gguf")
    lines = (shared_assets / "text" / "tinyshakespeare.txt").read_text().splitlines()[:300]
    same_tokenizer(Tokenizer(stories260k), Tokenizer(opened.dir), [*TEXTS, *lines])
    assert Tokenizer(opened.dir).use_bos
    model, expected = load_model(opened).state_dict(), load_model(stories260k).state_dict()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())


def test_unused_tokens_fill_the_list_up(file):
    tokens = open_gguf(file).metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == VOCABULARY
    assert len(Tokenizer(find_checkpoint(file).dir)) < VOCABULARY
    assert tokens[-1] == f"[PAD{VOCABULARY - 1}]"


@pytest.mark.parametrize("kind", ["WordLevel", "cut", "too many"])
def test_a_tokenizer_that_a_file_cannot_hold_is_refused(kind, tmp_path, folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    copy = shutil.copytree(folder, tmp_path / "hf")
    state = json.loads((copy / "tokenizer.json").read_text())
    if kind == "WordLevel":
        Tokenizer(models.WordLevel({"a": 0})).save(str(copy / "tokenizer.json"))
    elif kind == "cut":
        other = Tokenizer.from_str(json.dumps(state))
        other.pre_tokenizer = pre_tokenizers.Whitespace()
        other.save(str(copy / "tokenizer.json"))
    else:
        state["model"]["vocab"].update({f"t{i}": 320 + i for i in range(100)})
        (copy / "tokenizer.json").write_text(json.dumps(state))
    named = {
        "WordLevel": "is a WordLevel model",
        "cut": "has no name in GGUF",
        "too many": "tokens and its model only 320",
    }
    with pytest.raises(LitGPTError, match=named[kind]):
        write_gguf(copy, tmp_path / "a.gguf")


# -- writing


@pytest.mark.parametrize(
    ("dtype", "matrix", "narrow", "file_type"),
    [("f32", "F32", "F32", 0), ("f16", "F16", "F16", 1), ("bf16", "BF16", "BF16", 32), ("q8_0", "Q8_0", "F16", 7)],
)
def test_what_a_file_holds(dtype, matrix, narrow, file_type, tmp_path, folder):
    write_gguf(folder, tmp_path / "a.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == matrix
    assert kinds["blk.0.ffn_down.weight"] == narrow  # rows of 48 are no multiple of 32
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == file_type
    said = {"general.architecture": "llama", "llama.block_count": 3, "llama.attention.head_count_kv": 2}
    assert {key: reader.fields[key].contents() for key in said} == said
    assert "</s>" in reader.fields["tokenizer.chat_template"].contents()
    floats = [key for key, field in reader.fields.items() if field.types == [gguf.GGUFValueType.FLOAT32]]
    assert set(floats) == {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_round_trips_within_the_types_rounding(dtype, tmp_path, folder):
    write_gguf(folder, tmp_path / "a.gguf", dtype)
    found, expected = load_model(tmp_path / "a.gguf").state_dict(), load_model(folder).state_dict()
    for name, tensor in expected.items():
        if tensor.dim() == 1:
            assert torch.equal(found[name], tensor)
        elif dtype == "f16" or tensor.size(1) % 32:
            assert torch.equal(found[name], tensor.half().float())
        else:
            largest = tensor.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)  # of each block of 32
            error = (found[name] - tensor).unflatten(1, (-1, 32)).abs()
            assert (
                error <= largest / 127 * (0.5 + 127 / 2048)
            ).all()  # half a step, and float16's rounding of the step


def test_a_failure_leaves_no_file(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "hf")
    model = load_model(copy)
    model.transformer.h[2].mlp.proj.weight.data[0, 0] = 1e6
    (tmp_path / "lit").mkdir()
    shutil.copytree(folder, tmp_path / "lit", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), tmp_path / "lit" / "lit_model.pth")
    with pytest.raises(LitGPTError, match=r"'blk\.2\.ffn_down\.weight' is too large for float16"):
        write_gguf(tmp_path / "lit", tmp_path / "out" / "a.gguf")
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_named(tmp_path, folder):
    state = load_model(folder).state_dict()
    del state["transformer.h.1.mlp.fc_1.weight"]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(state, tmp_path / "lit_model.pth")
    with pytest.raises(LitGPTError, match=r"no tensor 'transformer\.h\.1\.mlp\.fc_1\.weight'"):
        write_gguf(tmp_path, tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        ("neox", {"hidden_act": "gelu_new"}, "'gptneox' has no place for `gelu_approximate`: 'tanh'"),
        ("qwen2-window", {}, "no place for `sliding_window_size`: 7"),
        ("llama-yarn-mscale", {}, "no place for `rope_adjustments`"),
        ("llama4", {}, "'llama4' has no place for `sliding_window_size`: 7"),
        ("gemma2", {}, "no place for `attention_scores_scalar`: 12"),
        ("gpt-oss", {"sliding_window": None}, "can't be written as GGUF's architecture 'gpt-oss'"),
        ("qwen3-next", {}, "family 'qwen3_next' are not written as GGUF here"),
        ("qwen3-moe", {"norm_topk_prob": False}, "no place for `router_softmax_over_all`: True"),
    ],
)
def test_a_model_that_gguf_cannot_describe_is_refused(case, changes, named, tmp_path, bpe):
    folder = hf_folder(case, tmp_path, bpe, **changes)
    with pytest.raises(LitGPTError, match=named):
        write_gguf(folder, tmp_path / "a.gguf")


def test_a_gpt2_without_biases_is_refused(tmp_path, bpe):
    config = Config.from_name("gpt2", n_layer=1, n_embd=32, n_head=2, intermediate_size=32, bias=False, norm_bias=False)
    config.padded_vocab_size = VOCABULARY
    shutil.copytree(bpe, tmp_path, dirs_exist_ok=True)
    torch.save(GPT(config).state_dict(), tmp_path / "lit_model.pth")
    config.save(tmp_path)
    with pytest.raises(LitGPTError, match="'gpt2' with biases only"):
        write_gguf(tmp_path, tmp_path / "a.gguf")


def test_an_unknown_type_is_refused(tmp_path, folder):
    known = r"f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m\. Closest: q8_0"
    with pytest.raises(LitGPTError, match=f"not written as 'q4_0'; known: {known}"):
        write_gguf(folder, tmp_path / "a.gguf", "q4_0")


# -- the real thing


@pytest.fixture(scope="module")
def real(smollm2) -> Path:
    """SmolLM2-135M-Instruct: Q4_1, Q8_0 and F32, the file that the folder beside it was made from."""
    return smollm2 / "model.gguf"


@pytest.mark.slow
def test_the_real_file_is_the_folder_beside_it(real, smollm2):
    model, expected = load_model(real, dtype=torch.bfloat16), load_model(smollm2)
    assert model.tied
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    ours, theirs = model.config, expected.config
    same = ("n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "block_size", "norm_eps", "rope_base")
    assert [getattr(ours, field) for field in same] == [getattr(theirs, field) for field in same]


@pytest.mark.slow
@torch.inference_mode()
def test_the_real_file_says_what_the_folder_says(real, smollm2):
    tokenizer = Tokenizer(find_checkpoint(real).dir)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt)[None].long()
    exact, rounded, folder = load_model(real), load_model(real, dtype=torch.bfloat16).float(), load_model(smollm2)
    folder = folder.float()
    assert torch.equal(rounded(ids), folder(ids))
    error = (exact(ids) - folder(ids)).abs().max() / folder(ids).abs().max()
    assert error < 0.02, f"more than bfloat16's rounding of the weights: {error}"

    def greedy(model: GPT) -> list[int]:
        model.set_kv_cache(1, ids.size(1) + 64)
        found, start = ids, 0
        for _ in range(64):
            positions = torch.arange(start, found.size(1))
            start = found.size(1)
            found = torch.cat([found, model(found[:, positions], positions)[:, -1:].argmax(-1)], dim=1)
        return found[0, ids.size(1) :].tolist()

    assert greedy(rounded) == greedy(folder)
    assert "Paris" in tokenizer.decode(greedy(exact))


@pytest.mark.slow
def test_the_real_files_tokenizer_is_the_folders(real, smollm2, shared_assets):
    lines = [line for line in (shared_assets / "text" / "tinyshakespeare.txt").read_text().splitlines() if line][:1000]
    found, expected = find_checkpoint(real).dir, smollm2
    same_tokenizer(Tokenizer(expected), Tokenizer(found), [*lines, *TEXTS])
    from litgpt.prompts.chat_template import read_templates

    assert read_templates(found) == read_templates(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "qwen3", "mistral_7b_v01", "gemma3", "gpt2"])
def test_real_tokenizers_go_through(name, tmp_path, fetched_assets, shared_assets):
    source = (shared_assets if name == "gpt2" else fetched_assets) / "tokenizers" / name
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    rows = len(Tokenizer(tmp_path))
    config = Config(
        name="tiny", n_layer=1, n_embd=32, n_head=2, intermediate_size=32, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", rotary_percentage=1.0, parallel_residual=False, padded_vocab_size=rows,
    )  # fmt: skip
    torch.save(GPT(config).state_dict(), tmp_path / "lit_model.pth")
    config.save(tmp_path)
    write_gguf(tmp_path, tmp_path / "a.gguf")
    lines = [line for line in (shared_assets / "text" / "tinyshakespeare.txt").read_text().splitlines() if line][:1000]
    vectors = (shared_assets / "tokenizers" / "golden_vectors" / "gpt-2.inp").read_text()
    hard = vectors.split("\n__ggml_vocab_test__\n")
    same_tokenizer(Tokenizer(tmp_path), Tokenizer(find_checkpoint(tmp_path / "a.gguf").dir), [*lines, *hard])
