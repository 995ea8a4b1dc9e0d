"""Training a model that is shared out over ranks (FSDP2): how it is opened, and how its optimizer's state is kept.

The state is written by torch.distributed.checkpoint as safetensors files in `optimizer/` of a `step-*` folder, each
rank what it has, and read back on any number of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from litgpt.checkpoint.dtypes import NEVER_CAST
from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.layout import Checkpoint
from litgpt.checkpoint.reader import EMBEDDING, HEAD, open_weights, part_source
from litgpt.config import Config
from litgpt.errors import LitGPTError, one_line
from litgpt.model import GPT
from litgpt.model.initialization import initialize
from litgpt.model.sharding import is_sharded, like, load_tensors, reset_tensors
from litgpt.peft import Full, Method, base_name
from litgpt.quantize import QuantizedLinear, replace_linears
from litgpt.runtime import shard_model

if TYPE_CHECKING:
    from lightning.fabric import Fabric

OPTIMIZER = "optimizer"
"""The folder with the optimizer's state beside the file with all else."""


def training_bytes(config: Config, dtype: torch.dtype, method: Method | None = None) -> int:
    """Bytes that a whole model takes in training, without activations: weights, and for what trains gradients and an
    optimizer with two moments; of a method that trains little beside frozen weights only these."""
    copies = 4 if method is None or isinstance(method, Full) else 1
    return GPT.skeleton(config).n_parameters() * dtype.itemsize * copies


def new_sharded(config: Config, fabric: Fabric) -> GPT:
    """A model with random weights, the same as in one piece."""
    model = GPT.skeleton(config)
    shard_model(model, fabric)
    initialize(model)
    return model


def open_sharded(
    checkpoint: Checkpoint,
    fabric: Fabric,
    dtype: torch.dtype,
    method: Method | None = None,
    update: Finetuned | None = None,
    quantize: str | None = None,
) -> GPT:
    """The model of a checkpoint, shared out over the fabric's ranks, each of which reads its rows alone. What is
    kept in few bits is read whole on each, a block at a time, and its codes are shared out; their scales are not.

    Args:
        checkpoint: Of the model without a method.
        fabric: Whose strategy shares models out.
        dtype: Of the weights.
        method: What to attach; None: nothing.
        update: What the method goes on with.
        quantize: One of `litgpt.quantize.MODES`, for frozen weights.

    Raises:
        LitGPTError: The checkpoint can't be read, or the method can't be had for this model or strategy.
    """
    weights = open_weights(checkpoint)
    model = GPT.skeleton(checkpoint.config)
    in_few_bits = replace_linears(model, quantize, dtype) if quantize else {}
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(NEVER_CAST):
                tensor.data = tensor.data.to(dtype)
    if method is not None:
        if update is None:
            method.check(model)
        if getattr(method, "vocabulary", None) is not None:
            raise LitGPTError(
                "--resize_vocab true adds rows to a whole model, and this one is shared out over devices: use "
                "--strategy ddp, or resize it in a run of one step on one device first."
            )
        method.attach(model)
    owned = str.isspace if method is None else method.owns  # the former: none
    done = {f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, QuantizedLinear)}
    plain = replace(weights, names=tuple(name for name in weights.names if name not in in_few_bits))
    source = part_source(model, plain, dtype, base_name, lambda name: name in done or owned(name))

    def quantize_in(module: nn.Module) -> None:
        inside = set(module.modules())
        for name in [name for name, layer in in_few_bits.items() if layer in inside]:
            stored = EMBEDDING if name == HEAD and name not in weights.names else name
            in_few_bits.pop(name).load_weight(weights.fetch(stored).to(fabric.device))

    shard_model(model, fabric, quantize_in)
    source = replace(source, names=tuple(name for name in source.names if name not in done))
    loaded = load_tensors(model.named_modules(), source) | {id(layer.weight) for layer in done.values()}
    reset_tensors(model.named_modules(), loaded)
    if update is not None:
        update.load_into(model)
    return model.eval()


def write_optimizer(folder: Path, optimizer: Optimizer) -> dict[str, Any]:
    """Writes what is shared out of an optimizer's state into `folder`, on every rank; returns the rest."""
    state: dict[str, Any] = optimizer.state_dict()
    shards, rest = {}, {}
    for number, parts in state["state"].items():
        rest[number] = {part: one for part, one in parts.items() if not is_sharded(one)}
        shards.update({f"{number}.{part}": one for part, one in parts.items() if is_sharded(one)})
    if shards:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save(shards, storage_writer=HuggingFaceStorageWriter(str(folder / OPTIMIZER), save_distributed=True))
    return {**state, "state": rest}


def read_optimizer(folder: Path, saved: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state that `write_optimizer` (or a run on one device) saved, cut as the parameters of `optimizer` are now.

    Args:
        folder: A `step-*` folder.
        saved: What of the state is in its file.
        optimizer: Of the run that goes on; called on every rank.

    Raises:
        LitGPTError: A file is damaged, or of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: dict(parts) for number, parts in saved["state"].items()}
    for number, parts in state.items():
        for part, value in parts.items():
            if number < len(parameters) and isinstance(value, Tensor) and value.shape == parameters[number].shape:
                parts[part] = like(value, parameters[number])
    if (folder / OPTIMIZER).is_dir():
        _read_shards(folder / OPTIMIZER, parameters, state)
    return {**saved, "state": state}


def _read_shards(folder: Path, parameters: list[nn.Parameter], state: dict[int, dict[str, Any]]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        reader = HuggingFaceStorageReader(str(folder))
        found = reader.read_metadata().state_dict_metadata
        targets = {}
        for key, of in found.items():
            assert isinstance(of, TensorStorageMetadata)
            number, _, part = key.partition(".")
            parameter = parameters[int(number)].detach()
            if of.size != parameter.shape:
                raise ValueError(f"{key} is {tuple(of.size)}, not {tuple(parameter.shape)}")
            targets[key] = torch.empty_like(parameter, dtype=of.properties.dtype)
            state.setdefault(int(number), {})[part] = targets[key]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank needs no other
            load(targets, storage_reader=reader)
    except LitGPTError:
        raise
    except (CheckpointException, Exception) as error:  # whose own is no Exception
        reason = one_line(error)
        raise LitGPTError(f"{folder} can't be read ({reason}); resume from an earlier step.") from None
