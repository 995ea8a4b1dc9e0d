"""The names that LitGPT's tutorials and examples import, used as they use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import litgpt
from litgpt import GPT, LLM, Config
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.writer import save_state
from litgpt.config import name_to_config
from litgpt.prompts import PromptStyle, model_name_to_prompt_style
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from litgpt.scripts.download import download_from_hub
from litgpt.utils import (
    CycleIterator,
    auto_download_checkpoint,
    check_valid_checkpoint_dir,
    chunked_cross_entropy,
    copy_config_files,
    estimate_flops,
    extend_checkpoint_dir,
    get_default_supported_precision,
    instantiate_torch_optimizer,
    lazy_load,
    load_checkpoint,
    num_parameters,
    parse_devices,
    reset_parameters,
    save_config,
)
from tests.tiny_tokenizer import write_tokenizer

TINY: dict[str, Any] = dict(n_layer=3, n_embd=32, n_head=2, block_size=32, padded_vocab_size=128, intermediate_size=64)
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": dict(lora_r=2, lora_alpha=8, lora_query=True, lora_value=True, lora_mlp=True, lora_head=True),
    "adapter": dict(adapter_prompt_length=4, adapter_start_layer=1),
    "adapter_v2": {},
}
IDS = torch.arange(8)[None]


def of_method(method: str, **settings: Any) -> Any:
    """`GPT` of `litgpt.lora` and the others, by their own way."""
    return getattr(litgpt, method).GPT.from_name("pythia-14m", **TINY, **{**SETTINGS[method], **settings})


def freeze(method: str, model: torch.nn.Module) -> None:
    """The method's `mark_only_…_as_trainable`."""
    getattr(getattr(litgpt, method), f"mark_only_{method}_as_trainable")(model)


def test_all_of_litgpt_is_there_after_importing_it() -> None:
    code = "import litgpt; litgpt.utils.chunked_cross_entropy; litgpt.lora.GPT; litgpt.data.JSON; litgpt.no_such_thing"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "module 'litgpt' has no attribute 'no_such_thing'" in found.stderr


@pytest.mark.parametrize("method", SETTINGS)
def test_a_model_by_config_is_the_plain_one_with_the_method_on_it(method: str) -> None:
    plain = GPT.from_name("pythia-14m", **TINY)
    model = of_method(method)
    assert isinstance(model, GPT) and isinstance(model.config, getattr(litgpt, method).Config)
    assert all(parameter.requires_grad for parameter in model.parameters())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    keeps = getattr(litgpt, method).adapter_filter if "adapter" in method else litgpt.lora.lora_filter
    assert not unexpected and all(keeps(name, None) for name in missing)
    model.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IDS), plain(IDS))
    freeze(method, model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if keeps(name, None)}
    assert num_parameters(model, requires_grad=True) == sum(model.get_parameter(name).numel() for name in trained)
    assert num_parameters(model) == num_parameters(model, True) + num_parameters(model, False)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_state_dict_in_another_module_loads_too(method: str) -> None:
    outer = torch.nn.ModuleDict({"model": of_method(method)})
    base = {f"model.{name}": tensor for name, tensor in GPT.from_name("pythia-14m", **TINY).state_dict().items()}
    assert not outer.load_state_dict(base, strict=False).unexpected_keys


@pytest.mark.parametrize("method", SETTINGS)
def test_what_is_attached_starts_right_in_an_empty_init(method: str) -> None:
    from lightning.fabric import Fabric

    with Fabric(accelerator="cpu").init_module(empty_init=True):
        model = of_method(method)
    model.load_state_dict(GPT.from_name("pythia-14m", **TINY).state_dict(), strict=False)
    plain = GPT.from_name("pythia-14m", **TINY)
    plain.load_state_dict({name.replace(".linear.", "."): x for name, x in model.state_dict().items()}, strict=False)
    torch.testing.assert_close(model(IDS), plain(IDS))


def test_a_training_loop_of_ones_own_with_lora() -> None:
    """LitGPT's `litgpt_ptl_medium.py`, without the Trainer."""
    torch.manual_seed(0)
    model = of_method("lora", lora_dropout=0.0)
    litgpt.lora.mark_only_lora_as_trainable(model)
    frozen = model.transformer.h[0].attn.qkv.linear.weight.clone()
    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), lr=0.05, fused=False, momentum=1)
    losses = []
    for _ in range(5):
        loss = litgpt.utils.chunked_cross_entropy(model(IDS)[..., :-1, :], IDS[..., 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    assert torch.equal(model.transformer.h[0].attn.qkv.linear.weight, frozen)
    expected = model.eval()(IDS)
    litgpt.lora.merge_lora_weights(model)
    plain = GPT(Config.from_name("pythia-14m", **TINY))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(IDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("bias", "trained"), [("none", 0), ("lora_only", 1), ("all", 2)])
def test_biases_train_as_asked(bias: str, trained: int) -> None:
    model = of_method("lora", lora_mlp=False, lora_head=False)
    litgpt.lora.mark_only_lora_as_trainable(model, bias)
    qkv, mlp = model.transformer.h[0].attn.qkv, model.transformer.h[0].mlp.fc
    assert qkv.bias.requires_grad + mlp.bias.requires_grad == trained
    with pytest.raises(NotImplementedError):
        litgpt.lora.mark_only_lora_as_trainable(model, "some")


def test_no_rank_is_no_lora(tmp_path: Path) -> None:
    model = of_method("lora", lora_r=0)
    assert not any("lora_" in name for name in model.state_dict())
    model.config.save(tmp_path)
    assert Config.from_checkpoint(tmp_path) == Config.from_name("pythia-14m", **TINY)


@pytest.mark.parametrize("chunk_size", [0, 1, 3, 128])
@pytest.mark.parametrize("pieces", [1, 3])
def test_chunked_cross_entropy_is_cross_entropy(chunk_size: int, pieces: int) -> None:
    logits = torch.randn(2, 7, 11, requires_grad=True)
    targets = torch.randint(11, (2, 7))
    targets[0, :4] = -1
    given = logits if pieces == 1 else list(logits.chunk(pieces, dim=1))
    loss = chunked_cross_entropy(given, targets, chunk_size, ignore_index=-1)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(loss, expected)
    assert chunked_cross_entropy(given, torch.full_like(targets, -1), chunk_size, ignore_index=-1) == 0


def test_styles_by_the_name_of_a_model() -> None:
    for name in name_to_config:
        expected = PromptStyle.from_config(Config.from_name(name))
        assert type(model_name_to_prompt_style(name)) is type(expected), name
    assert type(model_name_to_prompt_style("my-Llama-3-Instruct")).__name__ == "Llama3"
    assert type(model_name_to_prompt_style("nobody-knows")).__name__ == "Default"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LitGPT's."""
    folder = write_tokenizer(tmp_path_factory.mktemp("checkpoints") / "org" / "tiny")
    model = GPT(Config.from_name("pythia-14m", **TINY))
    save_state(folder / "lit_model.pth", model.state_dict())
    save_config(model.config, folder)
    return folder


def test_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[2] if folder.parents[1].name == "checkpoints" else tmp_path)
    assert extend_checkpoint_dir(folder) == folder and extend_checkpoint_dir(Path("nothing")) == Path("nothing")
    assert auto_download_checkpoint(folder) == folder
    check_valid_checkpoint_dir(folder)
    copy_config_files(folder, tmp_path)
    with pytest.raises(FileNotFoundError):
        check_valid_checkpoint_dir(tmp_path)
    convert_lit_checkpoint(folder, tmp_path / "hf")
    assert find_checkpoint(tmp_path / "hf").kind == "hf"
    convert_hf_checkpoint(tmp_path / "hf", dtype="float32")
    model = GPT(Config.from_checkpoint(tmp_path / "hf"))
    load_checkpoint(None, model, tmp_path / "hf" / "lit_model.pth")
    assert all(torch.equal(model.state_dict()[name], x) for name, x in lazy_load(folder / "lit_model.pth").items())


def test_small_functions() -> None:
    model = GPT(Config.from_name("pythia-14m", **TINY))
    before = model.lm_head.weight.clone()
    reset_parameters(model)
    assert not torch.equal(model.lm_head.weight, before)
    assert estimate_flops(model, training=True) > estimate_flops(model, training=False) > 2 * num_parameters(model)
    assert get_default_supported_precision(training=False) in ("32-true", "bf16-true", "16-true")
    cycle = CycleIterator([1, 2, 3])
    assert [next(cycle) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1] and cycle.epoch == 2
    assert parse_devices(3) == 3 and parse_devices("auto") >= 1
    with pytest.raises(ValueError):
        parse_devices(0)
    assert download_from_hub.__name__ == "download"


def test_an_llms_fabric(folder: Path) -> None:
    assert LLM.load(str(folder), distribute=None).fabric is None
    llm = LLM.load(str(folder), distribute=None)
    llm.distribute(accelerator="cpu", precision="bf16-true")
    assert llm.fabric is not None and llm.fabric.device == llm.device
    assert llm.fabric.to_device(torch.ones(1)).device == llm.device


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer_with_lora(tmp_path: Path) -> None:
    """LitGPT's `litgpt_ptl_medium.py` on a small model."""
    lightning = pytest.importorskip("lightning.pytorch")
    base = GPT.from_name("pythia-14m", **TINY)
    torch.save(base.state_dict(), tmp_path / "lit_model.pth")

    class Finetuning(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = of_method("lora")
            litgpt.lora.mark_only_lora_as_trainable(self.model)

        def on_train_start(self) -> None:
            self.model.load_state_dict(torch.load(tmp_path / "lit_model.pth", mmap=True), strict=False)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return litgpt.utils.chunked_cross_entropy(self.model(batch)[..., :-1, :], batch[..., 1:])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), lr=0.01)

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_steps=3, precision="bf16-true", **quiet)
    with trainer.init_module(empty_init=True):
        module = Finetuning()
    trainer.fit(module, torch.utils.data.DataLoader(IDS.repeat(6, 1), batch_size=2))
    litgpt.lora.merge_lora_weights(module.model)
    trainer.save_checkpoint(tmp_path / "trained.ckpt", weights_only=True)
    llm = LLM(GPT.from_name("pythia-14m", **TINY))
    llm.trainer_setup(tmp_path / "trained.ckpt")
    assert llm(IDS).isfinite().all() and not torch.equal(llm(IDS), base(IDS))
