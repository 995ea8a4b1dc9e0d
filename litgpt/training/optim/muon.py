"""Muon for the matrices inside the blocks, AdamW for everything else, in one optimizer.

R: rows of a matrix (what it puts out), C: its columns (what it takes in), E: experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from litgpt.errors import LitGPTError, quoted
from litgpt.model.attention import CausalSelfAttention
from litgpt.model.sharding import is_sharded, like, whole
from litgpt.peft.lora_layers import LoRALinear

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic that brings every singular value near 1 (https://kellerjordan.github.io/posts/muon)."""

EPS = 1e-7


class Muon(Optimizer):
    """Momentum, made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), for hidden matrices.

    Embeddings, head, norms, biases and gates are AdamW's. A matrix that holds several (query, key and value in one; all
    experts of a layer) is treated as these. Updates have the size that AdamW's have (0.2 of a root mean square,
    https://arxiv.org/abs/2502.16982), so that one learning rate suits both.

    Args:
        params: Groups as `groups_for_muon` makes them.
        lr: Learning rate of the matrices.
        weight_decay: Of matrices and embeddings.
        momentum: Share of the momentum that stays in each step.
        nesterov: Look one step of the momentum ahead.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: `match_rms_adamw`, or `original`: by the root of R / C where that is above 1.
        adamw_lr: Learning rate of AdamW; None: `lr`.
        adamw_betas: Of AdamW.
        adamw_eps: Of AdamW.
        fused: Whether AdamW's step is fused.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw_lr: float | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        if adjust_lr_fn not in ("match_rms_adamw", "original"):
            raise ValueError(f"adjust_lr_fn is match_rms_adamw or original, not {quoted(adjust_lr_fn)}")
        if lr < 0 or not 0 <= momentum < 1 or ns_steps < 1:
            raise ValueError("lr must not be negative, momentum lie in 0 … 1, ns_steps be at least 1")
        groups = [dict(group) for group in params]
        own = [{"weight_decay": weight_decay, **group} for group in groups if group["muon"]]
        others = [{"weight_decay": weight_decay, **group} for group in groups if not group["muon"]]
        self.ns_steps, self.adjust_lr_fn = ns_steps, adjust_lr_fn
        self.adamw: AdamW | None = None
        if others:
            rate = lr if adamw_lr is None else adamw_lr
            self.adamw = AdamW(others, lr=rate, betas=(adamw_betas[0], adamw_betas[1]), eps=adamw_eps, fused=fused)
            others = self.adamw.param_groups
        super().__init__([*own, *others], {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Steps every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._step(parameter, group)
        if self.adamw is not None:
            self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
            self.adamw.state = self.state
            self.adamw.step()

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state, keep = parameter.grad, self.state[parameter], group["momentum"]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - keep)
        update = gradient.lerp(momentum, keep) if group["nesterov"] else momentum
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        sizes = group["parts"] or [parameter.size(-2)]
        # The singular vectors are of all rows: where ranks share them, each rank computes the whole step.
        target = torch.zeros_like(update := whole(update)) if is_sharded(parameter) else parameter
        for part, its_update in zip(target.split(sizes, -2), update.split(sizes, -2), strict=True):
            direction = orthogonalized(its_update, self.ns_steps)
            part.add_(direction, alpha=-group["lr"] * self._scale(*part.shape[-2:]))
        if target is not parameter:
            parameter.add_(like(target, parameter))

    def _scale(self, rows: int, columns: int) -> float:
        if self.adjust_lr_fn == "original":
            return float(max(1, rows / columns) ** 0.5)
        return float(0.2 * max(rows, columns) ** 0.5)


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """`(…, R, C)` with singular values near 1 and the same singular vectors, in bfloat16, by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


def groups_for_muon(
    decaying: Sequence[tuple[str, nn.Parameter]],
    others: Sequence[tuple[str, nn.Parameter]],
    parts: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    """Parameter groups: hidden matrices by the parts they hold, then AdamW's with and without weight decay.

    Args:
        decaying: Named parameters that decay.
        others: Those that don't.
        parts: By name, the rows of each matrix that a parameter holds.

    Raises:
        LitGPTError: None is a hidden matrix.
    """
    by_parts: dict[tuple[int, ...], list[nn.Parameter]] = {}
    rest: list[nn.Parameter] = []
    for name, parameter in decaying:
        if _hidden_matrix(name, parameter):
            by_parts.setdefault(tuple(parts.get(name, ())), []).append(parameter)
        else:
            rest.append(parameter)
    if not by_parts:
        raise LitGPTError("Muon is for matrices inside the model's blocks, and none of what trains is one; use AdamW.")
    own = [{"params": matrices, "muon": True, "parts": list(sizes)} for sizes, matrices in by_parts.items()]
    adamw: list[dict[str, Any]] = [
        {"params": rest, "muon": False},
        {"params": [parameter for _, parameter in others], "muon": False, "weight_decay": 0.0},
    ]
    return own + [group for group in adamw if group["params"]]


def _hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Of a block, neither an embedding (Adapter's) nor what isn't a matrix or a stack of them."""
    inside = name.startswith("transformer.h.") and "wte" not in name and not name.endswith("bias")
    return inside and parameter.dim() in (2, 3) and min(parameter.shape[-2:]) > 1


def fused_parts(model: nn.Module) -> dict[str, list[int]]:
    """The parameters of `model` that hold several matrices one below the other, with the rows of each."""
    found: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, CausalSelfAttention):
            rows = [heads * module.head_size for heads in module.heads if heads]
            found[f"{name}.qkv.weight"] = found[f"{name}.qkv.linear.weight"] = rows
        if isinstance(module, LoRALinear) and module.parts is not None:
            found[f"{name}.lora_A"] = [module.r] * len(module.parts)
            found[f"{name}.lora_B"] = [len(part) for part in module.parts]
    return found
