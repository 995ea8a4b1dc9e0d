"""`convert_to_litgpt` and `convert_from_litgpt`: bit for bit there and back, in little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from litgpt.__main__ import main
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.scripts.convert_from_litgpt import convert_from_litgpt
from tests.checkpoint.anonymous import peak_growth
from tests.tiny import CASES, hf_folder

TOKENS = torch.arange(20)[None]


@pytest.fixture(scope="module", params=["llama", "llama-tied", "mistral", "neox", "gpt2", "gpt2-untied"])
def converted(request, tmp_path_factory) -> tuple[Path, Path]:
    """A Hugging Face folder with LitGPT's files beside it, and what was exported from those."""
    folder = hf_folder(request.param, tmp_path_factory.mktemp(request.param) / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    lit = tmp_path_factory.mktemp(request.param) / "lit"
    lit.mkdir()
    for name in ("lit_model.pth", "model_config.yaml", "config.json"):
        shutil.copy(folder / name, lit)
    assert main(["convert_from_litgpt", str(lit), str(lit.parent / "back")]) == 0
    return folder, lit.parent / "back"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def sentence(capsys, *arguments: object) -> str:
    """Runs a command that must fail, and returns the one sentence it says."""
    assert main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# -- there and back


@torch.inference_mode()
def test_the_litgpt_folder_computes_the_same(converted, tmp_path):
    folder, _ = converted
    expected = load_model(folder)(TOKENS)  # lit_model.pth, as it is there
    for name in ("lit_model.pth", "model_config.yaml"):
        shutil.copy(folder / name, tmp_path)
        (folder / name).rename(folder / f"{name}.aside")
    try:
        assert torch.equal(load_model(tmp_path)(TOKENS), expected)
        assert torch.equal(load_model(folder)(TOKENS), expected)
    finally:
        for name in ("lit_model.pth", "model_config.yaml"):
            (folder / f"{name}.aside").rename(folder / name)


def test_the_way_back_is_bit_for_bit(converted):
    folder, back = converted
    expected, found = tensors_of(folder), tensors_of(back)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@torch.inference_mode()
def test_transformers_opens_the_way_back_with_no_help(converted):
    import transformers

    folder, back = converted
    ours, theirs = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (back, folder))
    assert torch.equal(ours(TOKENS).logits, theirs(TOKENS).logits)


@torch.inference_mode()
@pytest.mark.parametrize("case", ["llama-tied", "llama-3-rope", "mistral", "neox", "gpt2"])
def test_a_litgpt_folder_without_a_config_json_gets_one(case, tmp_path):
    import transformers

    folder = hf_folder(case, tmp_path / "model")
    expected = load_model(folder)(TOKENS)
    assert main(["convert_to_litgpt", str(folder)]) == 0
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    assert main(["convert_from_litgpt", str(folder), str(tmp_path / "back")]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(model(TOKENS).logits, expected)


def test_a_model_that_its_family_in_transformers_cannot_be_is_refused(tmp_path, capsys):
    """Without its config.json nothing tells that it is a Mistral, and a Llama looks back without a limit."""
    folder = hf_folder("mistral-window", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    (folder / "config.json").unlink()
    capsys.readouterr()
    message = sentence(capsys, "convert_from_litgpt", folder, tmp_path / "back")
    assert "LlamaForCausalLM can't have the model's sliding_window_size" in message
    assert not (tmp_path / "back").exists()


def test_tokenizer_and_generation_settings_go_along(stories260k, tmp_path):
    import transformers

    shutil.copytree(stories260k, tmp_path / "model")
    assert main(["convert_to_litgpt", str(tmp_path / "model")]) == 0
    assert main(["convert_from_litgpt", str(tmp_path / "model"), str(tmp_path / "back")]) == 0
    found, expected = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("back", "model"))
    text = "Once upon a time, Lily said: 'Hello!'"
    assert found(text).input_ids == expected(text).input_ids
    names = {file.name for file in (tmp_path / "back").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"lit_model.pth", "model_config.yaml"}


def test_a_folder_without_generation_settings_gets_them_from_its_tokenizer(stories260k, tmp_path):
    shutil.copytree(stories260k, tmp_path / "model")
    assert main(["convert_to_litgpt", str(tmp_path / "model")]) == 0
    for name in ("generation_config.json", "config.json"):
        (tmp_path / "model" / name).unlink()
    assert main(["convert_from_litgpt", str(tmp_path / "model"), str(tmp_path / "back")]) == 0
    settings = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 1, "eos_token_id": 2}


def test_training_that_unties_the_head_is_said_in_the_export(tmp_path):
    folder = hf_folder("llama-tied", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    state = {name: tensor.clone() for name, tensor in load_pth(folder / "lit_model.pth").items()}
    state["lm_head.weight"] += 1
    save_state(folder / "lit_model.pth", {"model": state}["model"], wrap="model")
    assert main(["convert_from_litgpt", str(folder), str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(tensors_of(tmp_path / "back")["lm_head.weight"], state["lm_head.weight"])


def test_an_older_export_is_replaced_whole(tmp_path):
    folder = hf_folder("llama", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    (tmp_path / "back").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (tmp_path / "back" / name).write_text("old")
    assert main(["convert_from_litgpt", str(folder), str(tmp_path / "back")]) == 0
    assert {file.name for file in (tmp_path / "back").iterdir()} >= {"model.safetensors", "config.json", "notes.txt"}
    assert not list((tmp_path / "back").glob("*-of-*")) and not list((tmp_path / "back").glob("*.index.json"))


# -- choices


def test_dtype_casts_what_is_floating(tmp_path, capsys):
    folder = hf_folder("llama", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder), "--dtype", "bfloat16"]) == 0
    tensors = load_pth(folder / "lit_model.pth")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "Converted" in capsys.readouterr().err


def test_debug_mode_prints_each_tensor(tmp_path, capsys):
    folder = hf_folder("llama", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder), "--debug_mode", "true"]) == 0
    assert "transformer.h.2.attn.qkv.weight (64, 32) float32" in capsys.readouterr().err.splitlines()


def test_pickled_and_sharded_weights_convert_to_the_same(tmp_path):
    folder = hf_folder("llama", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    for kind in ("bin", "sharded"):
        other = tmp_path / kind / "model"
        other.mkdir(parents=True)
        shutil.copy(folder / "config.json", other)
        tensors = load_file(folder / "model.safetensors")
        if kind == "bin":
            torch.save(tensors, other / "pytorch_model.bin")
        else:
            for number, (name, tensor) in enumerate(tensors.items()):
                save_file({name: tensor}, other / f"model-{number}.safetensors")
        assert main(["convert_to_litgpt", str(other)]) == 0
        expected, found = (load_pth(path / "lit_model.pth") for path in (folder, other))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_named_model_gets_its_name(tmp_path):
    config = Config.from_name("pythia-14m")
    path = tmp_path / "anything"
    path.mkdir()
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in GPT(config).state_dict().items()}
    save_state(path / "lit_model.pth", state)
    config.save(path)
    assert main(["convert_from_litgpt", str(path), str(tmp_path / "hf")]) == 0
    assert main(["convert_to_litgpt", str(tmp_path / "hf"), "--model_name", "pythia-14m"]) == 0
    assert yaml.safe_load((tmp_path / "hf" / "model_config.yaml").read_text())["name"] == "pythia-14m"
    found = load_pth(tmp_path / "hf" / "lit_model.pth")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_a_gguf_file_opens_as_the_model_it_was_made_from(dtype, stories260k, tmp_path, capsys):
    convert_from_litgpt(stories260k, tmp_path / "new", f"gguf-{dtype}")
    assert f"Wrote {tmp_path / 'new' / f'model-{dtype}.gguf'}, 0." in capsys.readouterr().err
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        ours = load_model(tmp_path / "new" / f"model-{dtype}.gguf", dtype=torch.float32)(tokens)
        exact = load_model(stories260k)(tokens)
    assert (ours - exact).abs().max() < (0.02 if dtype == "f16" else 0.5) < exact.abs().max()


def test_a_folder_with_a_gguf_file_needs_no_conversion(stories260k, tmp_path, capsys):
    convert_from_litgpt(stories260k, tmp_path, "gguf-f16")
    assert main(["convert_to_litgpt", str(tmp_path)]) == 1
    assert f"{tmp_path} can be used as it is; `litgpt convert_from_litgpt" in capsys.readouterr().err


def test_a_pretraining_checkpoint_is_stripped_to_its_weights(tmp_path):
    folder = hf_folder("llama-tied", tmp_path / "model")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    state = load_pth(folder / "lit_model.pth")
    training = {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}}
    training |= {"optimizer": {"state": {0: torch.ones(100_000)}}, "step_count": 7}
    torch.save(training, folder / "new.pth")
    (folder / "new.pth").replace(folder / "lit_model.pth")
    assert main(["convert_pretrained_checkpoint", str(folder), str(tmp_path / "out")]) == 0
    found = torch.load(tmp_path / "out" / "lit_model.pth", weights_only=True)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert (tmp_path / "out" / "lit_model.pth").stat().st_size < 300_000
    assert {"config.json", "model_config.yaml"} <= {file.name for file in (tmp_path / "out").iterdir()}


# -- mistakes, each one sentence


def test_mistakes_on_the_way_there(tmp_path, capsys):
    assert "no checkpoint folder" in sentence(capsys, "convert_to_litgpt", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no *.safetensors or *.bin weights" in sentence(capsys, "convert_to_litgpt", tmp_path / "empty")
    folder = hf_folder("llama", tmp_path / "model")
    capsys.readouterr()
    assert "'float23' is no type" in sentence(capsys, "convert_to_litgpt", folder, "--dtype", "float23")
    assert "pythia-14m" in sentence(capsys, "convert_to_litgpt", folder, "--model_name", "pythia-14")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])
    assert "damaged" in sentence(capsys, "convert_to_litgpt", folder)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in sentence(capsys, "convert_to_litgpt", folder)
    (folder / "config.json").write_text('{"architectures": ["TotallyNewForCausalLM"]}')
    assert "TotallyNewForCausalLM" in sentence(capsys, "convert_to_litgpt", folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in sentence(capsys, "convert_to_litgpt", folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    assert "which tensor is in which file" in sentence(capsys, "convert_to_litgpt", folder)
    assert not list(folder.glob("*lit*"))


def test_weights_of_another_shape_than_the_config_says(tmp_path, capsys):
    folder = hf_folder("llama", tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 64}))
    capsys.readouterr()
    assert "mlp" in sentence(capsys, "convert_to_litgpt", folder)
    assert not list(folder.glob("*lit*"))


def test_mistakes_on_the_way_back(tmp_path, capsys):
    folder = hf_folder("llama", tmp_path / "model")
    capsys.readouterr()
    assert "is a Hugging Face folder already" in sentence(capsys, "convert_from_litgpt", folder, tmp_path / "out")
    assert main(["convert_to_litgpt", str(folder)]) == 0
    capsys.readouterr()
    assert "give another one" in sentence(capsys, "convert_from_litgpt", folder, folder)
    (tmp_path / "file").write_text("")
    assert "can't be written" in sentence(capsys, "convert_from_litgpt", folder, tmp_path / "file" / "out")
    state = load_pth(folder / "lit_model.pth")
    name = "transformer.h.0.attn.qkv"
    lora = {f"{name}.lora_A": torch.ones(2, 2), f"{name}.linear.weight": state[f"{name}.weight"]}
    save_state(folder / "lit_model.pth", {**state, **lora})
    assert "litgpt merge_lora" in sentence(capsys, "convert_from_litgpt", folder, tmp_path / "out")
    adapted = {**state, "transformer.h.2.attn.gating_factor": torch.ones(1)}
    save_state(folder / "lit_model.pth", adapted)
    assert "adapter weights" in sentence(capsys, "convert_from_litgpt", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- memory

LARGE = {
    "llama": dict(vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=5, num_attention_heads=8),
    "neox": dict(vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=5, num_attention_heads=8),
    "gpt2": dict(vocab_size=4096, n_embd=512, n_layer=5, n_head=8, n_positions=256, bos_token_id=0, eos_token_id=0),
}
SETUP = (
    "from litgpt.checkpoint.convert import to_hf, to_litgpt; from litgpt.checkpoint.dtypes import dtype_of;"
    "from litgpt.checkpoint.reader import load_model"
)


@pytest.fixture(scope="module", params=LARGE)
def large(request, tmp_path_factory) -> tuple[Path, int]:
    """A folder with some 70 MB of weights, and their size."""
    import transformers

    name, _ = CASES[request.param]
    config = getattr(transformers, name)(**LARGE[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.to_empty(device="cpu").tie_weights()
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    model.save_pretrained(folder)
    return folder, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell anonymous memory")
def test_converting_takes_little_memory_of_its_own(large, tmp_path):
    folder, size = large
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(folder / "config.json", pickled)
    torch.save(load_file(folder / "model.safetensors"), pickled / "pytorch_model.bin")
    steps = {
        "safetensors": f"to_litgpt({str(folder)!r})",
        "pickled": f"to_litgpt({str(pickled)!r}, dtype=dtype_of('bfloat16'))",
        "back": f"to_hf({str(folder)!r}, {str(tmp_path / 'back')!r})",
        "loading": f"load_model({str(folder)!r})",
    }
    growth = dict(zip(steps, peak_growth(SETUP, *steps.values()), strict=True))
    assert max(growth.values()) <= 0.5 * size, {name: nbytes / size for name, nbytes in growth.items()}


# -- LitGPT itself


PEER_CONVERTS = """
import sys, yaml
from pathlib import Path
from litgpt.config import name_to_config
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
folder, name = Path(sys.argv[1]), sys.argv[2]
small = yaml.safe_load((folder.parent / "ours" / "model_config.yaml").read_text())
name_to_config[name].update({**small, "name": name})
convert_hf_checkpoint(folder, model_name=name)
"""
PEER_OPENS = """
import sys, torch, yaml
from pathlib import Path
from litgpt import GPT, Config
model = GPT(Config.from_file(Path(sys.argv[1]) / "model_config.yaml"))
model.load_state_dict(torch.load(Path(sys.argv[1]) / "lit_model.pth", mmap=True, weights_only=True))
with torch.inference_mode():
    torch.save(model.float()(torch.arange(20)[None]), sys.argv[2])
"""


def ask(python: str, code: str, folder: Path, argument: object) -> None:
    """Runs code in LitGPT's environment, where this package must not be found instead."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", code, str(folder), str(argument)]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, case", [("SmolLM2-135M", "llama-tied"), ("Llama-2-7b-hf", "llama"), ("pythia-14m", "neox")]
)
def test_litgpt_converts_to_the_same_and_opens_what_is_written(name, case, peer_python, tmp_path):
    """Keys and tensors equal; and its logits from the folder written here, and ours from the one it wrote, equal."""
    ours = hf_folder(case, tmp_path / "ours")
    shutil.copytree(ours, tmp_path / "theirs")
    assert main(["convert_to_litgpt", str(ours)]) == 0
    ask(peer_python, PEER_CONVERTS, tmp_path / "theirs", name)
    found, expected = (load_pth(tmp_path / folder / "lit_model.pth") for folder in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    ask(peer_python, PEER_OPENS, ours, tmp_path / "logits.pt")
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(ours)(TOKENS), theirs, rtol=1e-5, atol=1e-5)
        shutil.copy(
            ours / "model_config.yaml", tmp_path / "theirs"
        )  # LitGPT writes the named size's, not these small ones
        torch.testing.assert_close(load_model(tmp_path / "theirs")(TOKENS), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_gguf_file_becomes_the_folder_it_was_made_into(smollm2, tmp_path):
    assert main(["convert_from_litgpt", str(smollm2 / "model.gguf"), str(tmp_path / "hf")]) == 0
    expected, found = tensors_of(smollm2), tensors_of(tmp_path / "hf")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].to(expected[name].dtype), expected[name]) for name in expected)


@pytest.mark.slow
def test_smollm2_there_and_back(smollm2, tmp_path):
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    for file in smollm2.iterdir():
        if file.suffix != ".gguf":
            shutil.copy(file, folder)
    assert main(["convert_to_litgpt", str(folder)]) == 0
    assert main(["convert_from_litgpt", str(folder), str(tmp_path / "back")]) == 0
    expected, found = tensors_of(folder), tensors_of(tmp_path / "back")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
