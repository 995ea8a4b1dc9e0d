"""Models that are shared out over gloo ranks on the CPU (FSDP2) against one process, in float32."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from litgpt.args import EvalArgs
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_owned, save_state
from litgpt.errors import LitGPTError, UsageError
from litgpt.model.sharding import is_sharded
from litgpt.peft import Full, Method
from litgpt.peft.adapter import Adapter
from litgpt.peft.adapter_v2 import AdapterV2
from litgpt.peft.lora import LoRA
from litgpt.quantize import QuantizedLinear
from litgpt.runtime import choose_strategy, leave_processes, make_fabric, shards
from litgpt.training.loop import fit
from litgpt.training.loss import NextToken
from litgpt.training.run import Result
from litgpt.training.sharded import open_sharded
from tests.training.runs import LENGTHS, column, make_run, make_samples, tiny_model

TOLERANCE = 1e-5
"""Of losses near 4, in float32."""
SETTINGS: dict[str, Any] = dict(epochs=3, max_steps=None, global_batch_size=7, max_norm=1.0, save_interval=3, guard=0)
"""Six steps; the last one has one sample, so that one rank of two has none."""


def checkpoint(folder: Path, **changes: Any) -> None:
    folder.mkdir()
    model = tiny_model(seed=4, **changes)
    model.config.save(folder)
    save_state(folder / "lit_model.pth", model.state_dict())


def train(
    source: Path,
    out_dir: Path,
    ranks: int = 1,
    strategy: str = "fsdp",
    method: Method | None = None,
    precision: str = "32-true",
    quantize: str | None = None,
    **fields: Any,
) -> Result:
    """A run over the model in `source`, on so many ranks."""
    method = method or Full()
    fabric = make_fabric(ranks, precision=precision, device="cpu", seed=3, strategy=strategy)
    if shards(fabric):
        model = open_sharded(find_checkpoint(source), fabric, torch.float32, method, quantize=quantize)
        assert is_sharded(model)
    else:
        model = load_model(source, dtype=torch.float32, quantize=quantize)
        method.attach(model)
    name = f"lit_model.pth{method.suffix}"
    run = make_run(
        out_dir,
        model=model,
        train_dataset=make_samples(LENGTHS, masked=True),
        val_dataset=make_samples([9, 14, 30], seed=5, masked=True),
        train={**SETTINGS, "micro_batch_size": 2, **fields.pop("train", {})},
        eval=EvalArgs(interval=2),
        owns=method.owns,
        weights_file=name,
        save=lambda folder: save_owned(folder / name, model, method.owns),
        fabric=fabric,
        **fields,
    )
    return fit(run)


def start(jobs: Callable[..., None], ranks: int, *args: Any) -> None:
    """Runs `jobs(*args)` on so many gloo ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.fabric", "torch.distributed.fsdp", "torch._dynamo"])  # imported once
    multiprocessing.start_processes(rank, args=(port, ranks, jobs, args), nprocs=ranks, start_method="forkserver")


def rank(number: int, port: int, ranks: int, jobs: Callable[..., None], args: tuple[Any, ...]) -> None:
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), NODE_RANK="0")
    os.environ.update(address, LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    jobs(*args)
    leave_processes()


def equal(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    """Whether two runs logged the same in the steps of the second."""
    for name in ("loss", "val_loss", "grad_norm", "learning_rate", "total_tokens"):
        found = column(other, name)
        assert found == pytest.approx(column(one, name)[-len(found) :], abs=tolerance, rel=tolerance), name
    assert column(other, "loss")


def two_ranks(folder: Path) -> None:
    train(folder / "model", folder / "two", ranks=2)
    train(folder / "model", folder / "1to2", ranks=2, resume=folder / "one" / "step-000003")
    with pytest.raises(UsageError, match="Adafactor can't step a matrix whose rows are on several devices"):
        train(folder / "model", folder / "adafactor", ranks=2, optimizer="Adafactor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With what runs of one rank and of two left."""
    folder = tmp_path_factory.mktemp("sharded")
    checkpoint(folder / "model", padded_vocab_size=41)
    train(folder / "model", folder / "one")
    start(two_ranks, 2, folder)
    train(folder / "model", folder / "2to1", resume=folder / "two" / "step-000003")
    return folder


def test_losses_are_those_of_one_process(folder):
    equal(folder / "one", folder / "two")


def test_the_final_checkpoint_is_whole(folder):
    one, two = (load_pth(folder / name / "final" / "lit_model.pth") for name in ("one", "two"))
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["1to2", "2to1"])
def test_a_run_goes_on_with_another_number_of_ranks(folder, change):
    equal(folder / "one", folder / change)
    assert not (folder / change / "step-000003").exists()  # it began after that


METHODS: dict[str, tuple[Method, str, float]] = {
    "lora": (LoRA(r=4, key=True, mlp=True, dropout=0.0), "32-true", TOLERANCE),
    "lora-mixed": (LoRA(r=4, key=True, mlp=True, dropout=0.0), "bf16-mixed", 0.02),
    "dora": (LoRA(r=4, dora=True, dropout=0.0), "32-true", TOLERANCE),
    "adapter": (Adapter(start_layer=0), "32-true", TOLERANCE),
    "adapter_v2": (AdapterV2(start_layer=0), "32-true", TOLERANCE),
}


def methods_on_two_ranks(folder: Path) -> None:
    for name, (method, precision, _) in METHODS.items():
        train(folder / "model", folder / f"{name}-two", 2, method=method, precision=precision)


@pytest.mark.slow
def test_every_method_is_shared_out(folder):
    for name, (method, precision, _) in METHODS.items():
        train(folder / "model", folder / f"{name}-one", method=method, precision=precision)
    start(methods_on_two_ranks, 2, folder)
    for name, (*_, tolerance) in METHODS.items():
        equal(folder / f"{name}-one", folder / f"{name}-two", tolerance)


QUANTIZED = {
    "int8": LoRA(r=4, mlp=True, dropout=0.0),
    "int4": LoRA(r=4, dropout=0.0),
    "bnb.nf4": LoRA(r=4, key=True, dropout=0.0),
    "bnb.fp4": AdapterV2(start_layer=0),
}


def in_few_bits_on_two_ranks(folder: Path) -> None:
    for mode, method in QUANTIZED.items():
        train(folder / "model", folder / f"{mode}-two", 2, method=method, quantize=mode)
    fabric = make_fabric(2, precision="32-true", device="cpu", seed=3, strategy="fsdp")
    for mode in QUANTIZED:
        model = open_sharded(find_checkpoint(folder / "model"), fabric, torch.float32, quantize=mode)
        layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        assert len(layers) >= 8
        for layer in layers:  # half of the codes, and a row more where their number is odd
            assert layer.weight.to_local().numel() <= -(-layer.weight.size(0) // 2) * layer.weight[0].numel()


def test_weights_in_few_bits_are_shared_out(tmp_path):
    checkpoint(tmp_path / "model", n_embd=64, intermediate_size=64, padded_vocab_size=48)
    for mode, method in QUANTIZED.items():
        train(tmp_path / "model", tmp_path / f"{mode}-one", method=method, quantize=mode)
    start(in_few_bits_on_two_ranks, 2, tmp_path)
    for mode in QUANTIZED:
        equal(tmp_path / f"{mode}-one", tmp_path / f"{mode}-two")


def two_ranks_alone(folder: Path) -> None:
    train(folder / "model", folder / "two", 2)


def four_ranks(folder: Path) -> None:
    os.cpu_count = lambda: 4  # a rank for each core is asked for; here they share some
    train(folder / "model", folder / "hsdp", 4, strategy="hsdp")
    train(folder / "model", folder / "1to4", 4, resume=folder / "one" / "step-000003")
    train(folder / "model", folder / "2to4", 4, resume=folder / "two" / "step-000003")
    train(folder / "model", folder / "muon-four", 4, optimizer="Muon")
    fabric = make_fabric(4, precision="32-true", device="cpu", seed=3, strategy="fsdp")
    model = open_sharded(find_checkpoint(folder / "model"), fabric, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    NextToken(model)(torch.arange(16)[None], torch.arange(16)[None]).backward()
    optimizer.step()
    states = [one for state in optimizer.state.values() for one in state.values() if one.dim()]
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *states]
    own = sum(tensor.to_local().nbytes for tensor in held)
    whole = 4 * sum(parameter.nbytes for parameter in load_model(folder / "model").parameters())
    assert own <= 0.35 * whole, (own, whole)


@pytest.mark.slow
def test_four_ranks_hold_a_quarter_each_and_compute_the_same(tmp_path):
    checkpoint(tmp_path / "model", n_embd=32)
    train(tmp_path / "model", tmp_path / "one")
    train(tmp_path / "model", tmp_path / "muon-one", optimizer="Muon")
    start(two_ranks_alone, 2, tmp_path)
    start(four_ranks, 4, tmp_path)
    for one, four in (("one", "hsdp"), ("one", "1to4"), ("one", "2to4"), ("muon-one", "muon-four")):
        equal(tmp_path / one, tmp_path / four, 1e-4)  # six steps after four ranks added up in another order


MIXTURE = dict(mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2)


def mixtures_on_two_ranks(folder: Path) -> None:
    train(folder / "model", folder / "two", 2)
    train(folder / "model", folder / "1to2", 2, resume=folder / "one" / "step-000003")
    train(folder / "model", folder / "lora-two", 2, method=LoRA(r=4, mlp=True, dropout=0.0))
    train(folder / "model", folder / "qlora-two", 2, method=LoRA(r=4, mlp=True, dropout=0.0), quantize="int8")


def test_mixtures_of_experts_are_shared_out(tmp_path):
    checkpoint(tmp_path / "model", **MIXTURE)
    train(tmp_path / "model", tmp_path / "one")
    train(tmp_path / "model", tmp_path / "lora-one", method=LoRA(r=4, mlp=True, dropout=0.0))
    train(tmp_path / "model", tmp_path / "qlora-one", method=LoRA(r=4, mlp=True, dropout=0.0), quantize="int8")
    start(mixtures_on_two_ranks, 2, tmp_path)
    for name in ("two", "1to2"):
        equal(tmp_path / "one", tmp_path / name)
    equal(tmp_path / "lora-one", tmp_path / "lora-two")
    equal(tmp_path / "qlora-one", tmp_path / "qlora-two")
    one, two = (load_pth(tmp_path / name / "final" / "lit_model.pth") for name in ("one", "two"))
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "devices", "precision", "sentence"),
    [
        ("fsdp", 2, "16-mixed", "can't scale the losses of 16-mixed"),
        ("hsdp", 2, "32-true", "an even number of devices from 4 on, not 2"),
        ("zero", 2, "32-true", "strategy is one of auto, ddp, fsdp, hsdp"),
    ],
)
def test_what_cannot_be_is_refused(strategy, devices, precision, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        choose_strategy(strategy, devices, 1, "cpu", precision)


def test_models_are_shared_out_where_they_do_not_fit(monkeypatch):
    monkeypatch.setattr("litgpt.runtime.memory_limit", lambda: 1000)
    chosen = [choose_strategy("auto", devices, 1, "cpu", "32-true", lambda: 600) for devices in (1, 2)]
    assert chosen == ["auto", "fsdp"]
    assert choose_strategy("auto", 2, 1, "cpu", "32-true", lambda: 300) == "ddp"
