"""The reader: every kind of folder, lazily, and a sentence that names what is wrong."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.layout import find_checkpoint, hf_weight_files
from litgpt.checkpoint.reader import load_model, load_pth, open_weights
from litgpt.checkpoint.weights import deinterleave_qkv, interleave_qkv
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from tests.checkpoint.anonymous import peak_growth
from tests.tiny import hf_folder, hf_model

TOKENS = torch.arange(20)[None]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small Llama as a Hugging Face folder."""
    return hf_folder("llama", tmp_path / "llama")


def change(folder: Path, edit) -> Path:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def save(content, path: Path, **options) -> None:
    """Replaces a file that may be memory-mapped."""
    torch.save(content, path.with_suffix(".new"), **options)
    path.with_suffix(".new").replace(path)


@pytest.fixture
def lit_folder(tmp_path) -> Path:
    """A small GPT-NeoX as a LitGPT folder."""
    config = Config.from_name(
        "pythia-14m", n_layer=2, n_embd=32, n_head=4, intermediate_size=48, padded_vocab_size=96, block_size=32
    )
    torch.manual_seed(0)
    torch.save(GPT(config).state_dict(), tmp_path / "lit_model.pth")
    config.save(tmp_path)
    return tmp_path


# -- what opens


@torch.inference_mode()
def test_sharded_safetensors_with_an_index(tmp_path):
    model = hf_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(hf_weight_files(tmp_path)) > 1
    torch.testing.assert_close(load_model(tmp_path)(TOKENS), model(TOKENS).logits)


@torch.inference_mode()
def test_a_pickled_bin_file(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = load_model(folder)(TOKENS)
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(load_model(folder)(TOKENS), expected)


@torch.inference_mode()
def test_a_bin_file_of_the_old_kind_without_a_zip(folder):
    torch.save(
        load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    expected = load_model(folder)(TOKENS)
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(load_model(folder)(TOKENS), expected)


@torch.inference_mode()
def test_tensor_names_without_the_prefix(tmp_path, capsys):
    folder = hf_folder("gpt2", tmp_path)
    expected = load_model(folder)(TOKENS)
    tensors = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # a causal mask, as the files of OpenAI's GPT-2 have
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load_model(folder)(TOKENS), expected)
    save_file({**tensors, "h.0.extra": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load_model(folder)(TOKENS), expected)
    assert "has no place for 'h.0.extra' of" in capsys.readouterr().err  # as the file calls it


@pytest.mark.parametrize(
    "wrap",
    [lambda s: {"model": s}, lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, lambda s: {"model": s, "step": 3}],
)
def test_litgpts_wrappings_of_a_state_dict(lit_folder, wrap):
    path = lit_folder / "lit_model.pth"
    state = load_pth(path)
    save(wrap(dict(state)), path)
    assert load_pth(path).keys() == state.keys()
    load_model(lit_folder)


@torch.inference_mode()
def test_the_older_interleaved_qkv_of_litgpt(lit_folder):
    path, expected = lit_folder / "lit_model.pth", load_model(lit_folder)(TOKENS)
    config = Config.from_checkpoint(lit_folder)
    state = {
        name.replace(".attn.qkv.", ".attn.attn."): interleave_qkv(t, config) if ".attn.qkv." in name else t.clone()
        for name, t in load_pth(path).items()
    }
    save(state, path)
    torch.testing.assert_close(load_model(lit_folder)(TOKENS), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_interleaving_is_undone(groups):
    config = Config(n_embd=32, n_head=4, n_query_groups=groups)
    rows = (4 + 2 * groups) * 8
    for tensor in (torch.randn(rows, 32), torch.randn(rows)):
        assert torch.equal(deinterleave_qkv(interleave_qkv(tensor, config), config), tensor)


def test_weights_can_be_trained_without_touching_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


# -- tied heads


def test_a_head_stored_apart_but_equal_is_tied(tmp_path):
    folder = change(
        hf_folder("llama-tied", tmp_path),
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    assert load_model(folder).tied


def test_a_head_that_differs_is_not_tied_whatever_the_config_says(tmp_path):
    folder = change(
        hf_folder("llama-tied", tmp_path), lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    )
    model = load_model(folder)
    assert not model.tied
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_one_storage_for_both_means_tied(lit_folder):
    state = load_pth(lit_folder / "lit_model.pth")
    state["lm_head.weight"] = state["transformer.wte.weight"]
    save(dict(state), lit_folder / "lit_model.pth")
    assert load_model(lit_folder).tied


# -- what is wrong, in one sentence


def test_a_missing_folder():
    with pytest.raises(LitGPTError, match="no checkpoint folder nowhere/at-all"):
        find_checkpoint("nowhere/at-all")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(LitGPTError, match="has no weights"):
        find_checkpoint(folder)


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(LitGPTError, match="neither"):
        find_checkpoint(folder)


def test_a_shard_that_the_index_names_and_is_not_there(tmp_path):
    hf_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    missing = hf_weight_files(tmp_path)[0]
    missing.unlink()
    with pytest.raises(LitGPTError, match=missing.name):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_truncated_safetensors_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LitGPTError, match=r"model\.safetensors is damaged"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_pth_file(lit_folder, keep):
    path = lit_folder / "lit_model.pth"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LitGPTError, match=r"lit_model\.pth"):
        load_model(lit_folder)


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text('{"architectures": ')
    with pytest.raises(LitGPTError, match=r"config\.json is not valid JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"), "model.layers.1.self_attn.k_proj.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), r"model\.norm\.weight \(7,\) can't be"),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(7, 3)}),
            r"q_proj\.weight \(\d+, \d+\) and .*k_proj\.weight \(7, 3\).*can't be transformer\.h\.0\.attn\.qkv",
        ),
    ],
    ids=["missing", "shape", "shape of a part"],
)
def test_a_tensor_that_does_not_belong_is_named(folder, edit, named):
    with pytest.raises(LitGPTError, match=named):
        load_model(change(folder, edit))


def test_tensors_that_are_too_many_are_named_and_left_out(folder, capsys):
    before = load_model(folder).state_dict()
    extra = {f"model.layers.{layer}.self_attn.g_proj.weight": torch.ones(1) for layer in range(5)}
    after = load_model(change(folder, lambda tensors: tensors.update(extra))).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "'model.layers.0.self_attn.g_proj.weight'" in told and "and 2 more" in told


def test_a_missing_tensor_of_a_litgpt_folder_is_named(lit_folder):
    state = load_pth(lit_folder / "lit_model.pth")
    del state["transformer.h.1.mlp.fc.weight"]
    save(dict(state), lit_folder / "lit_model.pth")
    with pytest.raises(LitGPTError, match=r"transformer.h.1.mlp.fc.weight"):
        load_model(lit_folder)


class Malice:
    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_with_code_in_it_is_not_run(lit_folder, old, monkeypatch):
    monkeypatch.chdir(lit_folder)
    torch.save({"w": Malice()}, lit_folder / "lit_model.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(LitGPTError, match="could run code"):
        load_model(lit_folder)
    assert not (lit_folder / "pwned").exists()


def test_a_bare_pickle_is_not_run(lit_folder, monkeypatch):
    monkeypatch.chdir(lit_folder)
    (lit_folder / "lit_model.pth").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(LitGPTError, match=r"lit_model\.pth"):
        load_model(lit_folder)
    assert not (lit_folder / "pwned").exists()


@pytest.mark.parametrize("zipped", [False, True], ids=["alone", "with a zip behind it"])
def test_a_pickle_that_is_nested_too_deeply_is_refused_before_torch_reads_it(zipped, tmp_path):
    path = tmp_path / "lit_model.pth"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    deep = pickle.PROTO + b"\x02" + pickle.NONE + pickle.TUPLE1 * 1000 + pickle.STOP
    content = path.read_bytes()
    path.write_bytes(content.replace(pickle.dumps(1001, 2), pickle.dumps(1001, 2) + deep, 1))
    if zipped:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x", "y")
    with pytest.raises(LitGPTError, match="nested too deeply"):
        load_pth(path)


def test_a_file_of_something_else_is_told(lit_folder):
    (lit_folder / "lit_model.pth").write_bytes(b"junk")
    with pytest.raises(LitGPTError, match=r"lit_model\.pth is damaged"):
        load_model(lit_folder)


# -- cost

MEASURE = """
import sys, torch
from litgpt.checkpoint.reader import load_model
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
load_model(sys.argv[2])  # imports and first-use pools are not the model's
before, peak = anonymous(), 0
import threading
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch); thread.start()
model = load_model(sys.argv[1])
for parameter in model.parameters():
    parameter.sum()
peak = max(peak, anonymous()); done.set(); thread.join()
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin", "pth"])
def test_loading_takes_no_more_memory_than_the_weights(kind, folder, tmp_path):
    import transformers

    big = tmp_path / "big"
    config = transformers.LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(big)
    weights = sum(p.nbytes for p in model.parameters())
    if kind == "bin":
        torch.save(load_file(big / "model.safetensors"), big / "pytorch_model.bin")
        (big / "model.safetensors").unlink()
    elif kind == "pth":
        loaded = load_model(big)
        torch.save(loaded.state_dict(), big / "lit_model.pth")
        loaded.config.save(big)
    run = [sys.executable, "-c", MEASURE, str(big), str(folder)]
    anonymous = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert anonymous <= 1.15 * weights


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_mixture_that_is_cast_is_not_in_memory_twice(tmp_path):
    import transformers

    config = transformers.Qwen3MoeConfig(
        **dict(vocab_size=1000, hidden_size=256, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4),
        **dict(head_dim=64, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=512),
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    weights = sum(parameter.nbytes for parameter in load_model(tmp_path, dtype=torch.float32).parameters())
    setup = "import torch\nfrom litgpt.checkpoint.reader import load_model"
    [growth] = peak_growth(setup, f"model = load_model({str(tmp_path)!r}, dtype=torch.float32)")
    assert growth <= 1.2 * weights


def test_open_weights_reads_nothing_until_asked(folder, monkeypatch):
    weights = open_weights(find_checkpoint(folder))
    assert "transformer.h.0.attn.qkv.weight" in weights.names
    assert weights.fetch("transformer.h.0.attn.qkv.weight").shape == (64, 32)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 3


def test_the_folder_of_a_run_names_its_checkpoint(tmp_path):
    for name in ("step-000010", "step-000020", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lit_model.pth").touch()
    with pytest.raises(LitGPTError, match=f"the folder of a run; give {tmp_path}/final"):
        find_checkpoint(tmp_path)
    (tmp_path / "final" / "lit_model.pth").unlink()
    with pytest.raises(LitGPTError, match="step-000020"):
        find_checkpoint(tmp_path)
