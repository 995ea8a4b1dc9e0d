"""Several LoRA adapters beside one base model, each row of a batch computed with its own (as in Punica, Chen et al.,
2023, https://arxiv.org/abs/2310.18547, or S-LoRA, Sheng et al., 2023, https://arxiv.org/abs/2311.03285).

B: rows of a batch, T: tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.peft.lora import LoRA
from litgpt.peft.lora_layers import LoRALinear, row_norms, scale_rows, scatter_rows, updated_row_norms
from litgpt.peft.method import Wrapped, WrappedLinear, load_owned
from litgpt.quantize import dense_weight


class AdapterBank:
    """The adapters of a model, and which rows of the batch that is computed use which.

    Args:
        model: Changed in place: a linear that an adapter has an update for is wrapped.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.names: list[str] = []
        self.groups: list[tuple[str, Tensor | None]] = []
        """Adapter and the rows that use it, `(rows,)`; None: all of them."""

    @torch.no_grad()
    def add(self, name: str, method: LoRA, state: Mapping[str, Tensor], where: str) -> None:
        """Adds an adapter.

        Args:
            name: What `using` calls it.
            method: Which layers it has updates for, and of what rank.
            state: Its parameters, as `lit_model.pth.lora` has them.
            where: What an error calls the file.

        Raises:
            LitGPTError: The parameters are not of this method and this model, or stand beside experts.
        """
        if method.modules_to_save:
            raise LitGPTError(f"{where} has whole modules, which can't be chosen per request; serve it alone.")
        skeleton = GPT.skeleton(self.model.config)
        method.attach(skeleton)
        load_owned(skeleton, method.owns, dict(state), where)
        layers = {path: layer for path, layer in skeleton.named_modules() if isinstance(layer, Wrapped)}
        for layer in layers.values():
            if not isinstance(layer, LoRALinear):
                raise LitGPTError(f"{where} has updates of experts, which can't be chosen per request; serve it alone.")
        for path, layer in layers.items():
            assert isinstance(layer, LoRALinear)
            own = self.model.get_submodule(path)
            if not isinstance(own, BankedLinear):
                own = BankedLinear(own, self)
                self.model.set_submodule(path, own)
            own.add(name, layer)
        self.names.append(name)

    @contextmanager
    def using(self, rows: Sequence[str | None]) -> Iterator[None]:
        """While inside, row `b` of what the model computes uses the adapter `rows[b]`; None: the base alone."""
        if len(set(rows)) == 1:
            self.groups = [] if rows[0] is None else [(rows[0], None)]
        else:
            device = self.model.transformer.wte.weight.device
            self.groups = [
                (name, torch.tensor([b for b, other in enumerate(rows) if other == name], device=device))
                for name in dict.fromkeys(rows)
                if name is not None
            ]
        try:
            yield
        finally:
            self.groups = []


@dataclass(frozen=True)
class BankedUpdate:
    """What an adapter adds to a layer."""

    down: Tensor
    """`(r, in)`."""
    up: Tensor
    """`(out, r)`, the scaling in it."""
    gains: Tensor | None = None
    """What each output is multiplied with, its bias apart, where the adapter learned magnitudes; `(out,)`."""

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for `x`, given `y`, what it is without the adapter."""
        y = y + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)).to(y.dtype)
        return y if self.gains is None else scale_rows(y, self.gains, bias)


class BankedLinear(WrappedLinear):
    """A linear layer with the updates of several adapters beside it."""

    def __init__(self, linear: nn.Module, bank: AdapterBank) -> None:
        super().__init__(linear)
        self._bank = [bank]  # in a list, for `nn.Module` would take the model in it for a part of this layer
        self._updates: dict[str, BankedUpdate] = {}

    def add(self, name: str, layer: LoRALinear) -> None:
        """Takes over the update of a layer that holds it alone."""
        weight = dense_weight(self.linear)
        dtype = weight.dtype if weight.is_floating_point() else layer.lora_A.dtype
        down = layer.down().detach().to(weight.device, dtype)
        up = layer.up().detach().to(weight.device)
        gains = None
        if layer.lora_magnitude is not None:
            norms = updated_row_norms(weight, row_norms(weight).square(), down, up, layer.scaling)
            gains = scatter_rows(layer.lora_magnitude.detach().to(norms), norms, layer.parts) / norms
        self._updates[name] = BankedUpdate(down, (up.float() * layer.scaling).to(dtype), gains)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, …, in)` → `(B, …, out)`."""
        y: Tensor = self.linear(x)
        for name, rows in self._bank[0].groups:
            if (update := self._updates.get(name)) is None:
                continue
            if rows is None:
                y = update.apply(x, y, self.bias)
            else:
                y[rows] = update.apply(x[rows], y[rows], self.bias)
        return y
