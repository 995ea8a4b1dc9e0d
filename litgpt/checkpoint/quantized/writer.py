"""Writes a model as a Hugging Face folder whose linear layers are in few bits: GPTQ's, AWQ's or compressed-tensors'.

O, I: rows and columns of a weight; G: groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litgpt.checkpoint.layout import Checkpoint
from litgpt.checkpoint.quantized.reader import AWQ_ORDER, pack_bits
from litgpt.checkpoint.reader import open_weights
from litgpt.checkpoint.weights import Tensors, WeightTable
from litgpt.checkpoint.writer import TensorSpec, tensor_specs, write_hf_settings, write_safetensors
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.moe import Experts, LLaMAMoE
from litgpt.quantize.calibration import quantizable
from litgpt.quantize.methods import RoundedModel
from litgpt.quantize.rounding import Grid, Rounded, round_to_fp8, round_to_nearest

GROUP_SIZES = (128, 64, 32)
"""Columns that share a scale; the first that divides all layers' is taken."""
MULTIPLE = 32
"""What the rows and columns of a layer have to be multiples of."""
Specs = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shapes and types of a weight's tensors, by the endings of their names."""


@dataclass(frozen=True)
class Layout:
    """A way to store weights."""

    bits: int
    symmetric: bool
    grouped: bool
    """Whether groups of columns have scales; else rows."""
    settings: Callable[[int | None, list[str]], dict[str, Any]]
    """The `quantization_config`, of the size of groups and the layers that are left in 16 bits."""
    encode: Callable[[Rounded], dict[str, Tensor]]
    """A weight's tensors by the endings of their names."""
    specs: Callable[[int, int, int, torch.dtype], Specs]
    """And what these are, for `(O, I, G)` and the type of the scales."""
    half: bool = False
    """Whether scales are float16, whatever the model's type."""
    method: str | None = "gptq"
    """What it is calibrated by; None: by nothing."""
    round: Callable[[Tensor, Grid], Rounded] = round_to_nearest
    """How a weight is rounded that is not calibrated."""

    def grid(self, group_size: int | None, dtype: torch.dtype) -> Grid:
        """What weights are rounded to."""
        return Grid(self.bits, group_size, self.symmetric, torch.float16 if self.half else dtype)


# ------------------------------------------------------------------------------------------------------- the layouts


def _gptq(rounded: Rounded) -> dict[str, Tensor]:
    columns, G = rounded.codes.size(1), rounded.scales.size(1)
    return {
        ".qweight": pack_bits(rounded.codes, 4).t(),
        ".qzeros": pack_bits(rounded.zeros.t() - 1 & 15, 4),
        ".scales": rounded.scales.t(),
        ".g_idx": torch.arange(columns, dtype=torch.int32) // (columns // G),
    }


def _gptq_specs(rows: int, columns: int, G: int, dtype: torch.dtype) -> Specs:
    return {
        ".qweight": ((columns // 8, rows), torch.int32),
        ".qzeros": ((G, rows // 8), torch.int32),
        ".scales": ((G, rows), dtype),
        ".g_idx": ((columns,), torch.int32),
    }


def _awq(rounded: Rounded) -> dict[str, Tensor]:
    order = torch.arange(len(rounded.codes)).view(-1, 8)[:, torch.tensor(AWQ_ORDER).argsort()].flatten()
    return {
        ".qweight": pack_bits(rounded.codes.t()[:, order], 4),
        ".qzeros": pack_bits(rounded.zeros.t()[:, order], 4),
        ".scales": rounded.scales.t(),
    }


def _awq_specs(rows: int, columns: int, G: int, dtype: torch.dtype) -> Specs:
    return {
        ".qweight": ((columns, rows // 8), torch.int32),
        ".qzeros": ((G, rows // 8), torch.int32),
        ".scales": ((G, rows), dtype),
    }


def _packed(bits: int) -> Callable[[Rounded], dict[str, Tensor]]:
    return lambda rounded: {
        ".weight_packed": pack_bits(rounded.codes, bits),
        ".weight_scale": rounded.scales,
        ".weight_shape": torch.tensor(rounded.codes.shape),
    }


def _packed_specs(bits: int) -> Callable[[int, int, int, torch.dtype], Specs]:
    return lambda rows, columns, G, dtype: {
        ".weight_packed": ((rows, columns * bits // 32), torch.int32),
        ".weight_scale": ((rows, G), dtype),
        ".weight_shape": ((2,), torch.int64),
    }


def _fp8(rounded: Rounded) -> dict[str, Tensor]:
    return {".weight": rounded.codes, ".weight_scale": rounded.scales}


def _fp8_specs(rows: int, columns: int, G: int, dtype: torch.dtype) -> Specs:
    return {".weight": ((rows, columns), torch.float8_e4m3fn), ".weight_scale": ((rows, 1), torch.float32)}


def _compressed(layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> Any:
    def settings(group_size: int | None, left: list[str]) -> dict[str, Any]:
        size = {"group_size": group_size, "strategy": "group"} if group_size else {"strategy": "channel"}
        group: dict[str, Any] = {"targets": ["Linear"], "weights": {**weights, **size}, "format": layout}
        group["input_activations"] = None if inputs is None else dict(inputs)
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": left,
        }

    return settings


def _gptq_settings(group_size: int | None, left: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": group_size or -1, "sym": True}
    inside: dict[str, Any] = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in left if name != "lm_head"}
    dynamic = {"dynamic": inside} if inside else {}
    return {**settings, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False, **dynamic}


def _awq_settings(group_size: int | None, left: list[str]) -> dict[str, Any]:
    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size or -1, "zero_point": True}
    return {**settings, "version": "gemm", "modules_to_not_convert": left}


WHOLE = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False}
TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
LAYOUTS = {
    "w4a16": Layout(4, True, True, _compressed("pack-quantized", WHOLE), _packed(4), _packed_specs(4)),
    "int8": Layout(
        8, True, False, _compressed("pack-quantized", {**WHOLE, "num_bits": 8}), _packed(8), _packed_specs(8)
    ),
    "fp8": Layout(
        *(8, True, False, _compressed("float-quantized", {**WHOLE, "num_bits": 8, "type": "float"}, TOKENS)),
        *(_fp8, _fp8_specs),
        method=None,
        round=lambda weight, grid: round_to_fp8(weight),
    ),
    "gptq": Layout(4, True, True, _gptq_settings, _gptq, _gptq_specs, half=True),
    "awq": Layout(4, False, True, _awq_settings, _awq, _awq_specs, half=True, method="awq"),
}
"""What `litgpt quantize --to` calls them."""


# ------------------------------------------------------------------------------------------------------------ a model


@dataclass(frozen=True)
class Plan:
    """What is rounded of a model, and to what."""

    layout: Layout
    group_size: int | None
    grids: dict[str, Grid]
    """By our name of a weight."""
    left: list[str]
    """Our names of the weights of linear layers that stay in 16 bits."""


def plan_rounding(config: Config, layout: Layout, group_size: int | None, dtype: torch.dtype) -> Plan:
    """Which weights of a model are rounded, and to what.

    Args:
        config: The model's.
        layout: How they will be stored.
        group_size: Columns that share a scale; None: the largest of `GROUP_SIZES` that divides all.
        dtype: Of the model.

    Raises:
        LitGPTError: The layout has no groups, or no layer can be stored that way.
    """
    shapes, table = linear_weights(config), WeightTable(config)
    if group_size is not None and not layout.grouped:
        raise LitGPTError("--group_size is for weights of 4 bits; those of 8 have a scale a row.")
    storable = {
        name: shape
        for name, shape in shapes.items()
        if table.keeps_rows(name) and shape[0] % MULTIPLE == 0 and shape[1] % MULTIPLE == 0
    }
    size = None
    if layout.grouped:
        columns = [shape[1] for shape in storable.values()]
        fitting = [one for one in GROUP_SIZES if all(count % one == 0 for count in columns)]
        size = group_size or (*fitting, MULTIPLE)[0]
        storable = {name: shape for name, shape in storable.items() if shape[1] % size == 0}
    if not storable:
        raise LitGPTError(
            f"No layer of this {config.family.architectures[0]} is a linear layer in transformers with columns in even "
            f"groups of {size or MULTIPLE}; choose another --group_size, or write a GGUF file."
        )
    grid = layout.grid(size, dtype)
    left = [name for name in shapes if name not in storable]
    return Plan(layout, size, dict.fromkeys(storable, grid), left)


def linear_weights(config: Config) -> dict[str, torch.Size]:
    """The shapes of the weights of a model's linear layers and experts, by name, without its head and routers."""
    model = GPT.skeleton(config)
    layers = {f"{name}.weight" for name in quantizable(model) if name != "lm_head"}
    experts = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Experts))
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name in layers or (name.startswith(experts) and name.endswith(".weight") and tensor.dim() == 2)
    }


def router_weights(config: Config) -> list[str]:
    """The names of the weights of a model's routers, which stay in 16 bits."""
    model = GPT.skeleton(config)
    routers = (f"{name}.gate.weight" for name, module in model.named_modules() if isinstance(module, LLaMAMoE))
    return [name for name in routers if name in model.state_dict()]


def write_quantized(folder: Path, checkpoint: Checkpoint, plan: Plan, made: RoundedModel, dtype: torch.dtype) -> None:
    """Fills `folder` with all that `transformers` needs; wrap the call in `atomic_folder`.

    Args:
        folder: An existing folder.
        checkpoint: The model, whose weights are rounded to nearest where `made` hasn't got them.
        plan: What is rounded to what.
        made: What calibration made of it.
        dtype: Of what stays in 16 bits.
    """
    weights, layout = open_weights(checkpoint), plan.layout
    table = WeightTable(checkpoint.config)

    @lru_cache(maxsize=8)
    def rounded(name: str) -> Rounded:
        if name in made.rounded:
            return made.rounded[name]
        return layout.round(weights.fetch(name), plan.grids[name])

    def kept(name: str) -> Tensor:
        tensor = made.changed[name] if name in made.changed else weights.fetch(name)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    names = tuple(name for name in weights.names if name in plan.grids)
    parts = [
        table.export_from(Tensors(names, lambda name, part=part: getattr(rounded(name), part)))  # type: ignore[misc]
        for part in ("codes", "scales", "zeros")
    ]
    others = table.export_from(Tensors(tuple(name for name in weights.names if name not in plan.grids), kept))
    unrounded = [*plan.left, *router_weights(checkpoint.config)]
    left = sorted(
        {theirs.removesuffix(".weight") for name in unrounded for theirs in table.sources(name)} | {"lm_head"}
    )
    specs = tensor_specs(others)
    endings: dict[str, tuple[str, str]] = {}
    for theirs, shape in _their_shapes(table, names, checkpoint.config).items():
        base = theirs.removesuffix(".weight")
        G = shape[1] // plan.group_size if plan.group_size else 1
        scales = plan.grids[names[0]].dtype
        for ending, (size, kind) in layout.specs(*shape, G, scales).items():
            specs[base + ending] = TensorSpec(torch.Size(size), kind)
            endings[base + ending] = theirs, ending

    @lru_cache(maxsize=1)
    def encoded(theirs: str) -> dict[str, Tensor]:
        return layout.encode(Rounded(*(part.fetch(theirs) for part in parts)))

    def fetch(name: str) -> Tensor:
        if name not in endings:
            return others.fetch(name)
        theirs, ending = endings[name]
        return encoded(theirs)[ending]

    settings = layout.settings(plan.group_size, left)
    write_hf_settings(folder, checkpoint.config, dtype, checkpoint.dir, quantization_config=settings)
    write_safetensors(folder, Tensors(tuple(specs), fetch), specs)


def _their_shapes(table: WeightTable, names: tuple[str, ...], config: Config) -> dict[str, tuple[int, int]]:
    """The shapes of their weights that ours of these names become."""
    shapes = linear_weights(config)
    sizes = table.export_from(Tensors(names, lambda name: torch.empty(1).expand(shapes[name])))
    return {name: (tensor.size(0), tensor.size(1)) for name, tensor in sizes}
