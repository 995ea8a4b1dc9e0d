"""LoRA: which layers get a low-rank update, and of what kind (`litgpt.peft.lora_layers` has the layers).

Layers are chosen by switches, as in LitGPT, or by patterns over their names. In names, `attn.query`, `attn.key` and
`attn.value` stand for the rows of the fused `attn.qkv`, which get an update each; `attn.qkv` for one update of all of
them; `mlp.experts.fc_1` for that part of every expert.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from litgpt.config import Config
from litgpt.errors import LitGPTError, closest, escaped, quoted
from litgpt.model import GPT
from litgpt.model.moe import Experts
from litgpt.peft.lora_layers import UPDATES, LoRAExperts, LoRALinear, Update
from litgpt.peft.method import Method, Wrapped, freeze_others, resize_vocabulary, wrap_modules
from litgpt.reading import check_pattern

SWITCHES = {
    "query": ("attn.query", "attn.q_*", "attn.gate"),
    "key": ("attn.key", "attn.kv_*"),
    "value": ("attn.value", "attn.kv_*"),
    "projection": ("attn.proj",),
    "mlp": ("transformer.h.*.mlp.*",),
    "head": ("lm_head",),
}
"""Switch → the patterns it stands for."""
QKV_PARTS = ("query", "key", "value")
OVERRIDABLE = ("dropout", "plus_ratio")
"""Settings of how updates learn, not of what they are: continued training may have others."""
ELSEWHERE = {
    "q_proj": "attn.query",
    "k_proj": "attn.key",
    "v_proj": "attn.value",
    "qkv_proj": "attn.query,attn.key,attn.value",
    "query_key_value": "attn.query,attn.key,attn.value",
    "c_attn": "attn.query,attn.key,attn.value",
    "o_proj": "attn.proj",
    "out_proj": "attn.proj",
    "dense": "attn.proj",
    "gate_proj": "mlp.fc_1",
    "up_proj": "mlp.fc_2",
    "down_proj": "mlp.proj",
    "gate_up_proj": "mlp.fc_1,mlp.fc_2",
    "all-linear": "*",
    "all": "*",
}
"""What layers are called in transformers and PEFT → here."""
INITS = ("default", "pissa", "pissa-fast")


@dataclass(frozen=True)
class TargetModule:
    """A layer that gets an update."""

    updates: tuple[Update, ...]
    """One for each of `parts`, or one."""
    parts: tuple[str, ...] = ()
    """Of a fused query-key-value layer or of experts: those with an update; none: it has one update as a whole."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of its updates."""
        return tuple(update.r for update in self.updates)


@dataclass
class LoRA(Method):
    """Which linears get an update, and of what rank."""

    r: int = 8
    """Rank of an update."""
    alpha: float = 16
    """An update is scaled by `alpha / r`."""
    dropout: float = 0.05
    """Share of an update's input that is dropped in training."""
    query: bool = True
    key: bool = False
    value: bool = True
    projection: bool = False
    """The attention's output."""
    mlp: bool = False
    """Every linear of the MLPs; experts and their router too."""
    head: bool = False
    target: list[str] | str | None = None
    """Patterns of the layers that get an update, in place of the six switches."""
    rank_pattern: dict[str, int] | None = None
    """Other ranks than `r`: pattern → rank; the first that matches a layer counts."""
    alpha_pattern: dict[str, float] | None = None
    """Other values than `alpha`, likewise."""
    rslora: bool = False
    """Scale by `alpha / sqrt(r)`."""
    dora: bool = False
    """Learn the magnitude of each row of the updated weights too."""
    init: str = "default"
    """How an update starts; see `INITS`."""
    plus_ratio: float | None = None
    """LoRA+ (https://arxiv.org/abs/2402.12354): B learns so many times as fast as A."""
    modules_to_save: list[str] | str | None = None
    """Patterns of the modules that are trained whole, and saved beside the updates."""
    vocabulary: int | None = None
    """Rows of embedding and head, which are trained whole then, where these are not the model's."""

    suffix = ".lora"

    def __post_init__(self) -> None:
        ranks = {"lora_r": self.r, **{f"lora_rank_pattern {key}": r for key, r in (self.rank_pattern or {}).items()}}
        for name, r in ranks.items():
            if not isinstance(r, int) or r < 1:
                raise LitGPTError(
                    f"{escaped(name)} is {quoted(r)}, but the rank of an update is a whole number, at least 1."
                )
        alphas = {"lora_alpha": self.alpha}
        alphas.update({f"lora_alpha_pattern {key}": alpha for key, alpha in (self.alpha_pattern or {}).items()})
        for name, alpha in alphas.items():
            if not alpha > 0 or math.isinf(alpha):
                raise LitGPTError(
                    f"{escaped(name)} is {quoted(alpha)}, but updates are scaled by it: it is a number above 0."
                )
        if not 0 <= self.dropout < 1:
            raise LitGPTError(f"lora_dropout is {quoted(self.dropout)}, but it is a share: at least 0 and less than 1.")
        if self.init not in INITS:
            near = closest(str(self.init), INITS)
            raise LitGPTError(f"lora_init is {quoted(self.init)}; it is one of {', '.join(INITS)}.{near}")
        if self.plus_ratio is not None and not 0 < self.plus_ratio < math.inf:
            raise LitGPTError(f"lora_plus_ratio is {quoted(self.plus_ratio)}, but it is a number above 0, such as 16.")
        if self.target is not None:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            moved = [name for name in SWITCHES if getattr(self, name) != defaults[name]]
            if moved and any(getattr(self, name) for name in SWITCHES):
                raise LitGPTError(
                    f"lora_target says alone which layers get an update; leave lora_{moved[0]} out, or add "
                    f"{quoted(SWITCHES[moved[0]][0])} to lora_target."
                )
        elif not any(getattr(self, name) for name in SWITCHES):
            raise LitGPTError(
                "All of lora_query, _key, _value, _projection, _mlp and _head are off; turn on one or more."
            )

    # -- what a method does

    def check(self, model: GPT) -> None:
        for name, target in self.targets(model).items():
            shape = matrix_shape(model.get_submodule(name))
            limit = shape[1] if name.endswith(".mlp.gate") else min(shape)  # a router has few rows by nature
            if max(target.ranks) > limit:
                raise LitGPTError(
                    f"lora_r is {max(target.ranks)}, but {name} is a matrix of {shape[0]} x {shape[1]}, and no update "
                    f"of it has a higher rank than {min(shape)}; a usual lora_r is 8 to 256."
                )

    def attach(self, model: GPT) -> None:
        targets = self.targets(model)
        self._untie(model)
        if self.vocabulary is not None:
            resize_vocabulary(model, self.vocabulary)
        wrap_modules(model, lambda name, module: _wrap(name, module, targets.get(name), model.config))
        freeze_others(model, self.owns)

    def owns(self, name: str) -> bool:
        return name.endswith(UPDATES) or self.saves(name)

    def saves(self, name: str) -> bool:
        """Whether a parameter, by its name, is one of a module that trains whole."""
        return bool(self.modules_to_save) and any(
            matches(module, pattern) for module in _parents(name) for pattern in patterns(self.modules_to_save)
        )

    @property
    def switchable(self) -> bool:
        return not self.modules_to_save

    def rate_factor(self, name: str) -> float:
        return self.plus_ratio or 1.0 if name.endswith("lora_B") else 1.0

    def resized(self, n_rows: int) -> LoRA:
        saved = patterns(self.modules_to_save)
        saved += [name for name in ("lm_head", "wte") if not self.saves(f"transformer.{name}.weight")]
        return dataclasses.replace(self, vocabulary=n_rows, modules_to_save=saved, head=False)

    def continue_from(self, found: Method) -> Method:
        fields = {field.name: field.default for field in dataclasses.fields(LoRA)}
        asked = {name: getattr(self, name) for name, default in fields.items() if getattr(self, name) != default}
        if not isinstance(found, LoRA):
            return super().continue_from(found)
        for name, value in asked.items():
            if name not in OVERRIDABLE and value != getattr(found, name):
                raise LitGPTError(
                    f"lora_{name} is {value}, but the updates to go on with have {getattr(found, name)}; leave it out, "
                    "or merge them first (`litgpt merge_lora`) and start from the result."
                )
        return dataclasses.replace(found, **{name: asked[name] for name in OVERRIDABLE if name in asked})

    # -- which layers

    def targets(self, model: GPT) -> dict[str, TargetModule]:
        """The layers that get an update, by name.

        Raises:
            LitGPTError: There is none, or a pattern matches nothing.
        """
        self._check_saved(model)
        chosen = self._patterns()
        found: dict[str, TargetModule] = {}
        matched_patterns: set[str] = set()
        for name, module in model.named_modules():
            if self.saves(f"{name}.weight"):
                continue
            names = target_names(name, module)
            matching = {at: [pattern for pattern in chosen if matches(at, pattern)] for at in names}
            matched_patterns.update(pattern for matched in matching.values() for pattern in matched)
            parts = tuple(at.rpartition(".")[2] for at in names[1:] if matching[at])
            if names and isinstance(module, Experts) and matching[name]:
                parts = module.linears
            if parts or (names and matching[name]):
                of_experts = [self._update(f"{name}.{part}", name) for part in parts if isinstance(module, Experts)]
                found[name] = TargetModule(tuple(of_experts) or (self._update(name),), parts)
        self._check_found(model, found, [pattern for pattern in chosen if pattern not in matched_patterns])
        return found

    def _patterns(self) -> list[str]:
        if self.target is not None:
            return patterns(self.target)
        return [pattern for name, stands_for in SWITCHES.items() if getattr(self, name) for pattern in stands_for]

    def _check_found(self, model: GPT, found: dict[str, TargetModule], unmatched: list[str]) -> None:
        if self.target is not None and unmatched:
            names = [at for name, module in model.named_modules() for at in target_names(name, module)]
            near = closest(unmatched[0], {at.rpartition(".")[2] for at in names} | set(names))
            here = ELSEWHERE.get(unmatched[0].rpartition(".")[2].lower())
            near = f" Here it is {here}." if here else near
            raise LitGPTError(
                f"lora_target: no linear layer of this model matches {quoted(unmatched[0])}.{near} Names are like "
                f"{names[1]}."
            )
        if not found:
            raise LitGPTError("No layer of this model gets an update; turn on others of the lora_* switches.")

    def _check_saved(self, model: GPT) -> None:
        if not self.modules_to_save:
            return
        names = [name for name, module in model.named_modules() if any(True for _ in module.parameters()) and name]
        for pattern in patterns(self.modules_to_save):
            if not any(matches(name, pattern) for name in names):
                near = closest(pattern, {name.rpartition(".")[2] for name in names})
                raise LitGPTError(f"lora_modules_to_save: no module of this model matches {quoted(pattern)}.{near}")
        for name, parameter in model.named_parameters():
            if self.saves(name) and not parameter.is_floating_point():
                raise LitGPTError(
                    f"lora_modules_to_save: {name} is kept in few bits, which can't be trained; leave --quantize or "
                    "this module out."
                )

    def _update(self, *names: str) -> Update:
        """The update of a layer, of that name or those."""

        def chosen(values: dict[str, Any] | None, default: Any) -> Any:
            found = (
                value for pattern, value in (values or {}).items() if any(matches(name, pattern) for name in names)
            )
            return next(found, default)

        r, alpha = chosen(self.rank_pattern, self.r), chosen(self.alpha_pattern, self.alpha)
        return Update(r, alpha, self.dropout, self.rslora, self.dora, self.init)

    def _untie(self, model: GPT) -> None:
        """A head or an embedding that trains whole becomes a tensor of its own."""
        if model.tied and (self.saves("lm_head.weight") or self.saves("transformer.wte.weight")):
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
            model.config = dataclasses.replace(model.config, tie_embeddings=False)

    # -- how it is written

    def settings(self) -> dict[str, Any]:
        """All settings that say what files hold, as flags without `lora_`; LitGPT's always, others where they are used.

        LitGPT 0.5.13 stops at any that it doesn't know, so it never takes an update for one of another kind.
        """
        own = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        known = {"r", "alpha", "dropout", *SWITCHES}
        return {name: value for name, (value, default) in own.items() if name in known or value != default}

    def as_saved(self) -> LoRA:
        """The LoRA that files of this one hold: one that started from singular values holds these too, at twice the
        rank."""
        if self.init == "default":
            return self
        alphas = {pattern: self._doubled(alpha) for pattern, alpha in (self.alpha_pattern or {}).items()}
        return dataclasses.replace(
            self,
            init="default",
            r=2 * self.r,
            alpha=self._doubled(self.alpha),
            rank_pattern={pattern: 2 * r for pattern, r in (self.rank_pattern or {}).items()} or None,
            alpha_pattern=alphas or None,
        )

    def _doubled(self, alpha: float) -> float:
        """What gives the same scaling at twice the rank."""
        return alpha * (math.sqrt(2) if self.rslora else 2)


def patterns(given: list[str] | str | None) -> list[str]:
    """Patterns as a list; in a text, commas part them."""
    if isinstance(given, str):
        given = [given] if given.startswith("re:") else given.split(",")
    return [pattern.strip() for pattern in given or ()]


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is of a module: of its whole name, or of its end from a dot on (`fc_1`, `attn.*`).

    `*` stands for anything, dots too; what begins with `re:` is a regular expression of the whole name.

    Raises:
        LitGPTError: It is no regular expression, or one that takes too long.
    """
    if pattern.startswith("re:"):
        check_pattern(pattern)
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def target_names(name: str, module: nn.Module) -> list[str]:
    """What a pattern may call a module that can get an update: its own name, then those of its parts; else nothing."""
    if isinstance(module, Experts):
        return [name, *(f"{name}.{part}" for part in module.linears)]
    if not isinstance(module, nn.Linear):
        return []
    stem, _, last = name.rpartition(".")
    return [name, *(f"{stem}.{part}" for part in QKV_PARTS)] if last == "qkv" else [name]


def _parents(parameter: str) -> Iterator[str]:
    """The names of the modules that a parameter lies in."""
    while "." in parameter:
        parameter = parameter.rpartition(".")[0]
        yield parameter


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """Rows and columns of a layer that can get an update, or of its smallest part."""
    if isinstance(module, Experts):
        return int(module.fc_1.shape[1]), int(module.fc_1.shape[2])
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def _wrap(name: str, module: nn.Module, target: TargetModule | None, config: Config) -> Wrapped | None:
    if target is None:
        return None
    if isinstance(module, Experts):
        return LoRAExperts(module, dict(zip(target.parts, target.updates, strict=True)))
    assert isinstance(module, nn.Linear)
    if not target.parts:
        return LoRALinear(module, target.updates[0])
    rows = [part for part in qkv_parts(config, name, target.parts) if part]
    return LoRALinear(module, target.updates[0], rows) if rows else None


def qkv_parts(config: Config, name: str, parts: Iterable[str]) -> list[range]:
    """The rows of the `attn.qkv` called `name` that belong to some of query, key and value; with their gates."""
    q, k, v = config.qkv_rows(int(name.split(".")[2]))
    bounds = {"query": range(q), "key": range(q, q + k), "value": range(q + k, q + k + v)}
    return [bounds[part] for part in parts]
