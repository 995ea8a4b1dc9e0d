"""Where a model that answers goes and in which numbers: to one device, its layers to several, or each layer to several
processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from litgpt.checkpoint.finetuned import Finetuned, open_model
from litgpt.checkpoint.layout import Checkpoint
from litgpt.errors import LitGPTError, quoted
from litgpt.model import GPT
from litgpt.quantize import quantize_model
from litgpt.runtime import (
    join_processes,
    local_devices,
    parameter_dtype,
    pick_device,
    product_dtype,
    quantized_precision,
)

Strategy = Literal["sequential", "tensor_parallel"]


@dataclass(frozen=True)
class Placement:
    """The devices and the numbers of a model; `open` and `move` bring one there."""

    devices: list[torch.device]
    """Of this process."""
    processes: int
    """That share every layer."""
    dtype: torch.dtype
    """Of the weights."""
    compute_dtype: torch.dtype
    """Of the products; another than that of the weights means autocast."""
    quantize: str | None = None
    """One of `litgpt.quantize.MODES`, which keeps linear layers in few bits."""
    precision: str = "32-true"
    """Both dtypes, by their name."""

    @classmethod
    def of(
        cls,
        device: str = "auto",
        precision: str | None = None,
        quantize: str | None = None,
        strategy: Strategy | None = None,
        devices: int | Literal["auto"] = "auto",
    ) -> Placement:
        """What a user asks for.

        Args:
            device: The kind of device: `auto`, `cpu`, `cuda`, `gpu`, `mps`.
            precision: `32-true`, `bf16-true` and so on; None: 16 bits where the device has them.
            quantize: One of `litgpt.quantize.MODES`.
            strategy: How several devices share a model.
            devices: How many, at most one a layer; `auto`: all that there are, or one without a strategy.

        Raises:
            LitGPTError: The device, the precision or the quantization can't be had; there are not so many devices, or
                several and no strategy; or they can't share quantized weights.
        """
        place = pick_device(device)
        precision = quantized_precision(quantize, precision, training=False, device=place)
        dtype = parameter_dtype(precision)
        own, processes = [place], 1
        if strategy == "tensor_parallel":
            place, processes = join_processes(place, devices)
            own = [place]
        elif strategy == "sequential":
            own = local_devices(place, devices)
        elif strategy is not None:
            raise LitGPTError(f"generate_strategy is {quoted(strategy)}; it must be 'sequential' or 'tensor_parallel'.")
        elif devices not in (1, "auto"):
            raise LitGPTError(
                f"{devices} devices need a generate_strategy: 'sequential' or 'tensor_parallel'; or leave out devices."
            )
        if processes > 1 and quantize is not None:
            raise LitGPTError(
                f"quantize is {quantize}, which {processes} processes can't share; leave it out, or spread the"
                " layers over devices (generate_sequentially)."
            )
        return cls(own, processes, dtype, product_dtype(precision), quantize, precision)

    def fabric(self) -> Any:
        """Lightning Fabric for the first of the devices, in the precision."""
        from lightning.fabric import Fabric

        precision: Any = self.precision
        return Fabric(accelerator=self.devices[0].type, devices=1, precision=precision)

    @property
    def alone(self) -> bool:
        """Whether it is one device of one process."""
        return len(self.devices) == 1 and self.processes == 1

    def open(self, source: Checkpoint | Finetuned, keep_bits: bool = False) -> GPT:
        """The model of a checkpoint, or what a method made of one, in its place; `keep_bits`: weights that are stored
        in few bits stay in them where one device computes and there is a product for them.

        Raises:
            LitGPTError: It can't be read, or not be shared by so many.
        """
        return self._shared(open_model(source, self._load_device, self.dtype, self.quantize, keep_bits and self.alone))

    def move(self, model: GPT) -> GPT:
        """Brings a model there; returns it.

        Raises:
            LitGPTError: It can't be quantized, or not be shared by so many.
        """
        model.to(device=self._load_device, dtype=self.dtype).eval()
        if self.quantize is not None:
            quantize_model(model, self.quantize, self.dtype)
        return self._shared(model)

    @property
    def _load_device(self) -> torch.device:
        """Where the weights are before they are shared: quantization happens on the device that computes."""
        return self.devices[0] if self.alone or self.quantize is not None else torch.device("cpu")

    def _shared(self, model: GPT) -> GPT:
        if self.processes > 1:
            from litgpt.engine.tensor_parallel import split_over_ranks

            split_over_ranks(model)
            return model.to(self.devices[0])
        if len(self.devices) > 1:
            from litgpt.engine.sequential import spread_layers

            spread_layers(model, self.devices[: model.config.n_layer])
        return model
