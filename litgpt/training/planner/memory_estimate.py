"""Memory of a training, estimated by a few steps on tensors that have shapes but no memory.

Model, method, loss and optimizer are the real ones; only the tensors are torch's fake ones, and every allocation is
written down. So whatever the code does to save memory, or fails to, is in the numbers; no formula knows a family.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from litgpt.args import TrainArgs
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.peft import Method, narrow_frozen, switched_off
from litgpt.quantize import make_layer, replace_linears
from litgpt.quantize.linear import QuantizedLinear
from litgpt.runtime import parameter_dtype, product_dtype
from litgpt.training.blocks import MOVED_BYTES, checkpoint_blocks
from litgpt.training.loss import NextToken
from litgpt.training.metrics.flops import Flops, flops_per_token, numbers_in
from litgpt.training.optim.optimizers import StepsInBackward, optimizer_for, trained_parameters
from litgpt.training.planner.heap import Heap
from litgpt.training.policy.losses import PolicyLoss
from litgpt.training.policy.objective import ADVANTAGE, Policy
from litgpt.training.preference.losses import PreferenceLoss
from litgpt.training.preference.objective import Preferences
from litgpt.training.run import Objective

aten = torch.ops.aten


@dataclass(frozen=True)
class RunSpec:
    """What is to be trained, and how."""

    config: Config
    method: Method
    train: TrainArgs
    optimizer: str | dict[str, Any]
    precision: str
    device: torch.device
    length: int
    """Tokens of a sample."""
    quantize: str | None = None
    devices: int = 1
    uneven: bool = False
    """Samples differ in length, so that packed ones are attended to one after the other."""
    preference: PreferenceLoss | None = None
    """What is minimised over pairs of samples; None: the loss of next tokens."""
    policy: PolicyLoss | None = None
    """What is minimised over answers of the model itself."""
    beside: int = 0
    """Bytes that lie beside what trains all the time: a teacher, a frozen reference."""
    cache: int = 0
    """Bytes of the KV cache that answers are drawn with, between steps."""

    @property
    def micro_batches(self) -> int:
        """In one optimizer step of a device."""
        return max(1, -(-self.train.global_batch_size // (self.devices * self.train.micro_batch_size)))


@dataclass(frozen=True)
class Memory:
    """Bytes, on one device. The parts are not all there at the same time: `peak` is the most that is."""

    weights: int
    quantized: int
    """Of the weights, those in few bits."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass through the layers keeps for the backward pass."""
    loss: int
    """What head and loss take on top of that."""
    peak: int
    reserved: int
    """What the allocator holds at most, with what lies unused between tensors: on a CPU from `Heap`, elsewhere
    `peak`."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What the steps on fake tensors found."""

    parameters: int
    trainable: int
    memory: Memory
    flops: Flops
    """Of one token."""
    saved: int
    """Bytes of the trained weights in a file."""


def estimate_memory(spec: RunSpec) -> MemoryEstimate:
    """Runs two micro-batches on fake tensors, each with an optimizer step after it: the second one finds what a run
    has from its second step on, the optimizer's state and, where gradients are added up, gradients.

    Raises:
        LitGPTError: The method, the optimizer or the quantization can't be had.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.manual_seed(0)
    model = GPT.skeleton(spec.config)
    model.max_seq_length = min(spec.length, spec.config.block_size)
    dtype = parameter_dtype(spec.precision)
    quantized = _make_stand_ins(model, spec.quantize, dtype) if spec.quantize else 0
    spec.method.attach(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = spec.method.owns(name) and parameter.is_floating_point()
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker() as tracker, EvenExperts():
        _materialise(model, spec.device, dtype)
        if spec.precision.endswith("-mixed"):
            narrow_frozen(model, product_dtype(spec.precision))
        weights = tracker.live
        trained = [parameter for _, parameter in trained_parameters(model)]
        optimizer = optimizer_for(model, spec.optimizer, spec.train, spec.precision)
        if spec.train.checkpointed_every:
            checkpoint_blocks(model, spec.train.checkpointed_every)
        training = _FakeTraining(spec, model, optimizer, tracker)
        try:
            training.step()
            training.step()
        except LitGPTError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LitGPTError(f"This can't be gone through without values: {reason}.") from error
        state = _bytes_of_state(optimizer)
        reserved = tracker.heap.extent if spec.device.type == "cpu" else tracker.peak
        answering = weights + state + spec.cache  # while answers are drawn, there are no gradients
        memory = Memory(
            weights + spec.beside,
            quantized,
            training.gradients,
            state,
            training.activations,
            training.loss,
            max(tracker.peak, answering) + spec.beside,
            max(reserved, answering) + spec.beside,
        )
        return MemoryEstimate(
            parameters=sum(numbers_in(model).values()),
            trainable=sum(parameter.numel() for parameter in trained),
            memory=memory,
            flops=flops_per_token(model, spec.length),
            saved=sum(parameter.nbytes for parameter in trained),
        )


class _FakeTraining:
    """Runs training steps on fake tensors and records the bytes of each part."""

    def __init__(self, spec: RunSpec, model: GPT, optimizer: Optimizer, tracker: MemoryTracker) -> None:
        self.spec, self.model, self.optimizer, self.tracker = spec, model, optimizer, tracker
        self.objective = _objective(spec, model).train()
        self.objective.begin(self._samples())
        self.in_backward = StepsInBackward(optimizer) if spec.train.optimizer_in_backward else None
        self.activations = self.loss = self.gradients = 0
        self.before = 0
        model.transformer.ln_f.register_forward_hook(lambda *_: self._trunk_is_done())

    def step(self) -> None:
        """A micro-batch and an optimizer step, after which gradients stay where a step has several micro-batches."""
        spec = self.spec
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._micro_batch()
        if self.in_backward is not None:
            self.gradients = max(p.nbytes for p in parameters)  # one at a time
            self.in_backward.norm()
            return
        self.gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        if spec.train.max_norm:
            torch.nn.utils.clip_grad_norm_(parameters, spec.train.max_norm)
        self.optimizer.step()
        if spec.micro_batches == 1:
            self.optimizer.zero_grad()

    def _micro_batch(self) -> None:
        spec, size = self.spec, self.spec.train.micro_batch_size * self.objective.sequences
        shape = (1, size * spec.length) if spec.train.packing else (size, spec.length)
        lengths: tuple[int, ...] | None = (spec.length,) * size if spec.train.packing else None
        if lengths is not None and spec.uneven and size > 1 and spec.length > 1:
            lengths = (spec.length - 1, *lengths[1:])
            shape = (1, sum(lengths))
        inputs = torch.zeros(shape, dtype=torch.long, device=spec.device)
        self.before = self.tracker.live
        with self._autocast(), self._offload():
            loss = self.objective(inputs, inputs, lengths, self._given())
            self.loss = max(self.loss, self.tracker.recent_peak - self.before - self.activations)
        (loss * 0.5).backward()

    def _samples(self) -> list[dict[str, Tensor]]:
        """Answers of a micro-batch, as far as their loss asks for them."""
        if self.spec.policy is None:
            return []
        return [{ADVANTAGE: torch.zeros((), device=self.spec.device)} for _ in range(2)]  # each says it is number 1

    def _given(self) -> Tensor | None:
        """What samples hold besides tokens: labels and log-probabilities of a reference, or their numbers."""
        if self.spec.preference is None and self.spec.policy is None:
            return None
        return torch.zeros(self.spec.train.micro_batch_size, 3, device=self.spec.device)

    def _trunk_is_done(self) -> None:
        self.activations = max(self.activations, self.tracker.live - self.before)
        self.tracker.recent_peak = self.tracker.live

    def _offload(self) -> AbstractContextManager[Any]:
        """What `blocks.Offload` moves to the host takes no room on the device."""
        if not self.spec.train.activation_offload:
            return nullcontext()
        stay = {id(parameter.untyped_storage()) for parameter in self.model.parameters()}

        def pack(tensor: Tensor) -> Tensor | tuple[torch.Size, torch.dtype]:
            moves = tensor.nbytes >= MOVED_BYTES and id(tensor.untyped_storage()) not in stay
            return (tensor.shape, tensor.dtype) if moves else tensor

        def unpack(packed: Tensor | tuple[torch.Size, torch.dtype]) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            return torch.empty(packed[0], dtype=packed[1], device=self.spec.device)

        return saved_tensors_hooks(pack, unpack)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.spec.precision.endswith("-mixed"):
            return nullcontext()
        return torch.autocast(self.spec.device.type, dtype=product_dtype(self.spec.precision))


def _objective(spec: RunSpec, model: GPT) -> Objective:
    if spec.policy is not None:  # a frozen reference is counted by itself (`beside`)
        return Policy(model, spec.policy, reference=switched_off if spec.method.switchable else None)
    if spec.preference is None:
        return NextToken(model, spec.train.z_loss, spec.train.label_smoothing)
    off = switched_off if spec.method.switchable else None
    return Preferences(model, spec.preference, off if spec.preference.referenced else None)


# ---------------------------------------------------------------------------------------------- tensors without memory


class MemoryTracker(TorchDispatchMode):
    """Counts every tensor's memory, in bytes, from when it is made until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.recent_peak = 0
        """`recent_peak`: the most since it was last set."""
        self.heap = Heap()
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stand_in = VALUE_DEPENDENT.get(func)
        result = stand_in(*args, **(kwargs or {})) if stand_in is not None else None
        if result is None:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        nbytes = storage.nbytes()
        chunks = self.heap.allocate(nbytes)

        def freed(_: Any) -> None:
            del self._known[key]
            self.live -= nbytes
            self.heap.free(chunks)

        self._known[key] = weakref.ref(storage, freed)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        self.recent_peak = max(self.recent_peak, self.live)


def _all_of_them(x: Tensor) -> Tensor:
    """`nonzero` where everything is: every token has a target."""
    return torch.empty(x.numel(), x.dim(), dtype=torch.long, device=x.device)


def _bins(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return torch.empty(minlength, dtype=torch.long, device=x.device)


def _by_mask(x: Tensor, indices: list[Tensor | None]) -> Tensor | None:
    """Indexing by a mask that holds everywhere; None: the index is no mask."""
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != torch.bool:
        return None
    return torch.empty(mask.numel(), *x.shape[mask.dim() :], dtype=x.dtype, device=x.device)


def _grouped_product(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Rows of `a` times the matrix of their group, or gradients of those; torch's own stand-in knows 16 bits only."""
    shape: tuple[int, ...] = (a.size(-2), b.size(-1))
    if a.dim() == b.dim():
        shape = ((a.size(0) if a.dim() == 3 else offs.numel() if offs is not None else 1), *shape)
    return torch.empty(shape, dtype=a.dtype, device=a.device)


def _some_number(x: Tensor) -> int | float | bool:
    return 1.0 if x.is_floating_point() else True if x.dtype == torch.bool else 1


VALUE_DEPENDENT: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: _all_of_them,
    aten.bincount.default: _bins,
    aten.index.Tensor: _by_mask,
    aten._grouped_mm.default: _grouped_product,
    aten._local_scalar_dense.default: _some_number,
}
"""What operations return instead that depend on values, which fake tensors don't have."""


class EvenExperts(TorchFunctionMode):
    """A mixture's tokens are spread evenly over its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.assignments = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.bincount:
            self.assignments = args[0].numel()
        elif func is Tensor.tolist and args[0].dtype == torch.int32:
            experts = args[0].numel()
            return [self.assignments * (number + 1) // experts for number in range(experts)]
        return func(*args, **(kwargs or {}))


def _materialise(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a model on `meta` tensors of the current mode, on `device`, floating-point ones in `dtype`."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                tensor = torch.empty(parameter.shape, dtype=kind, device=device)
                made[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


# ------------------------------------------------------------------------------------------------- weights in few bits


class _StandIn(QuantizedLinear):
    """Takes the room of a quantized layer and computes as one, without its values."""

    def __init__(self, layer: QuantizedLinear, nbytes: int) -> None:
        super().__init__(layer.in_features, layer.out_features, False, layer.dtype)
        self.bias = layer.bias
        self.set_weight(torch.empty(nbytes, dtype=torch.uint8, device="meta"))

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        size = (self.out_features, self.in_features)
        return torch.empty(size, dtype=dtype or self.dtype, device=self.weight.device)


SAMPLE_ROWS = 64
"""Rows of a weight that are quantized to see how much room all take."""


def _make_stand_ins(model: GPT, mode: str, dtype: torch.dtype) -> int:
    """Replaces what is to be quantized; returns the bytes of all of it."""
    total = 0
    sizes: dict[tuple[bool, int, int], int] = {}
    replace_linears(model, mode, dtype)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, QuantizedLinear):
            continue
        key = (name == "lm_head", layer.in_features, layer.out_features)
        if key not in sizes:
            rows = min(SAMPLE_ROWS, layer.out_features)
            sample = make_layer(mode, name, layer.in_features, rows, False, dtype)
            sample.load_weight(torch.randn(rows, layer.in_features))
            sizes[key] = _bytes_of_layer(sample) * layer.out_features // rows
        model.set_submodule(name, _StandIn(layer, sizes[key]))
        total += sizes[key]
    return total


def _bytes_of_layer(layer: nn.Module) -> int:
    state = getattr(layer, "state", None)
    scales = [state.absmax, *([state.state2.absmax] if state.state2 is not None else [])] if state is not None else []
    return sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers(), *scales))


# ----------------------------------------------------------------------------------------------------------- optimizer


def _bytes_of_state(optimizer: Optimizer) -> int:
    return sum(
        entry.nbytes for state in optimizer.state.values() for entry in tree_iter(state) if isinstance(entry, Tensor)
    )
