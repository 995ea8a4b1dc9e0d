"""What one training run is made of, and what it ends with: the values that the loop and its parts share.

Legend: a *sample* is `{"input_ids": (T,) int64, "labels": (T,) int64}`, not shifted, labels -100 where masked.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from torch import Tensor, nn

from litgpt.args import EvalArgs, LogArgs, TrainArgs
from litgpt.errors import LitGPTError
from litgpt.kernels.buffers import Buffers
from litgpt.model import GPT
from litgpt.model.sharding import everything as everything
from litgpt.runtime import make_fabric

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.data import DataModule
    from litgpt.tokenizer import Tokenizer


class Samples(Protocol):
    """A map-style data set.

    Optional methods: `epoch(n: int)` is called before the samples of epoch `n` are read; `known_length(index: int)`
    gives the tokens of a sample that are all targets but the first, so that only the rank that computes it reads it;
    `order(seed: int)` gives an order to read all samples in.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Objective(nn.Module):
    """What a run minimises: the losses of one micro-batch, summed up."""

    sequences = 1
    """That a sample consists of, one behind the other."""
    per_sample = False
    """Whether a step's sum is divided by its samples, not by its target tokens."""
    estimates = False
    """Whether there is something to find out of all samples of a step before the loss of any."""
    kept: Tensor | slice | None = None
    """Which rows of the coming micro-batch have a target, as the host knows it; None: to be found out, for which a host
    waits for its GPU. Good for one call."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        self.scratch = Buffers()

    def begin(self, samples: Sequence[Mapping[str, Tensor]]) -> None:
        """Called with all samples of a step, or of a validation, of all ranks, before any is computed."""

    def estimate(self, total: float, samples: int) -> None:
        """Called with what `forward(…, estimating=True)` summed up over micro-batches and ranks."""

    def measured(self) -> Tensor | None:
        """Sums over the samples since the last call, which `metrics` understands; None: nothing is measured."""
        return None

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """What is logged besides the loss, by name, from `measured` of all ranks."""
        return {}


class Rollouts(Protocol):
    """Makes what is learned of the samples of a data set, by the model as it is: answers to prompts, for instance."""

    updates: int
    """Optimizer steps that learn from each portion."""

    def make(self, number: int, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The samples to learn from portion `number`, counted from 0; called once an optimizer step, on every rank, and
        returns the same there. What it draws follows from the number."""

    def shown(self) -> str | None:
        """Something of the last portion, for people to read."""

    def save(self, folder: Path, step: int) -> None:
        """Writes, into a `step-*` folder, what the optimizer steps after that one still need of the last portion."""

    def restore(self, folder: Path) -> None:
        """Takes what `save` has written, if anything."""


class Logger(Protocol):
    """Where metrics go besides the CSV file (Lightning's loggers have this shape)."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


def one_rate(name: str) -> float:
    """The `rate_factor` of a run whose parameters all have the optimizer's learning rate."""
    return 1.0


@dataclass(kw_only=True)
class RunArguments:
    """The arguments of a command that its run takes as they are."""

    train: TrainArgs
    eval: EvalArgs
    out_dir: Path
    """Gets `step-*/`, `best/`, `final/`, `logs/csv/version_N/metrics.csv`, `loss.png` and `report.html`."""
    optimizer: str | dict[str, Any] = "AdamW"
    """A class name of `torch.optim`, a dotted class path, or `{"class_path": …, "init_args": {…}}`."""
    seed: int = 1337


@dataclass(kw_only=True)
class Run(RunArguments):
    """All that one training run is made of.

    A command makes the fabric (`runtime.make_fabric`, which launches the ranks), builds `model` with its weights
    loaded in `runtime.parameter_dtype(precision)` and any method attached, then calls `fit`. The loop moves the model
    to the device, sets `requires_grad` from `owns`, makes the optimizer, trains, validates, saves.
    """

    model: GPT
    train_dataset: Samples
    val_dataset: Samples | None
    """None or empty: no validation."""
    save: Callable[[Path], None]
    """Writes a complete checkpoint folder (weights as they are in memory, configuration, tokenizer …) into the
    existing, empty folder it is given. Called on rank zero only, inside `atomic_folder`: a killed run leaves no half
    folder."""
    fabric: Fabric
    objective: Callable[[GPT], Objective] | None = None
    """Makes what is minimised; None: the losses of next tokens, as `train` says."""
    rollouts: Rollouts | None = None
    """Makes the samples of each step from those of `train_dataset`; None: these are learned as they are."""
    owns: Callable[[str], bool] = everything
    """Which parameters (by `model.named_parameters()` name) train. The rest is frozen."""
    rate_factor: Callable[[str], float] = one_rate
    """What the learning rate is multiplied with, by the name of a parameter."""
    base: tuple[str, Path] | None = None
    """The fingerprint of the checkpoint whose frozen weights it trains beside, and where that is."""
    weights_file: str = "lit_model.pth"
    """The file of a saved folder that holds every owned parameter under its `named_parameters()` name (flat or under
    "model"): what a resumed run reads back."""
    sample: Callable[[int], str | None] | None = None
    """Shows what the model says after each validation; gets the step. Called on every rank with the model in eval
    mode and no gradients; prints through `fabric.print`, and returns what the report shows, if anything."""
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    """Runs tasks after each validation, or where one would be; gets the step. Called as `sample`; what it found is
    logged by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The command's arguments, as `args.hyperparameters` has them; a resumed run prints which have changed."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Those of them, by flag, that a resumed run must not change: what the model computes depends on them."""
    complete: Callable[[Path], None] | None = None
    """Adds to a folder that is kept (`final`, `best`) what takes long to make, once training has ended. Called on rank
    zero only; what it can't do is told when all else is done."""
    loggers: Sequence[Logger] = ()
    """Besides CSV, which is always written: `loggers.named_loggers(logger_name, out_dir, log)`."""
    resume: Path | None = None
    """A `step-*` folder to go on from: `state.resume_point(resume, out_dir)`. Weights, optimizer, and counters are
    restored; the order of samples and dropout follow from seed and counters, so the run continues as if never
    stopped."""
    read_ahead: int = 0
    """Steps whose samples are read while one is computed."""
    step_digits: int = 6
    """Width of the number in `step-%0Nd`: LitGPT has 6 in finetuning, 8 in pretraining."""
    whole_final_validation: bool = True
    """The last validation reads all of `val_dataset` (False: `eval.max_iters` micro-batches, as the others)."""


@dataclass(kw_only=True)
class TrainingArguments(RunArguments):
    """The arguments that pretraining and every finetuning command have, which say what they mean."""

    precision: str | None
    devices: int | str
    num_nodes: int
    strategy: str = "auto"
    resume: bool | str | Path
    data: DataModule | None
    log: LogArgs
    logger_name: str
    arguments: Mapping[str, Any]
    """All arguments of the command as they were given, for `hyperparameters.yaml`."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any], **more: Any) -> Self:
        """From the arguments of a command, of which those that have no field here are left out, and `more` fields."""
        own = {name: arguments[name] for name in arguments if name in cls.__dataclass_fields__}
        return cls(arguments=arguments, **{**own, **more})

    def make_fabric(self, precision: str | None, needed: Callable[[], int]) -> Fabric:
        """The devices that these arguments ask for; see `runtime.make_fabric`."""
        return make_fabric(
            self.devices, self.num_nodes, precision, seed=self.seed, strategy=self.strategy, needed=needed
        )

    def read_data(
        self, data: DataModule, tokenizer: Tokenizer | None, max_seq_length: int, model: GPT, fabric: Fabric
    ) -> None:
        """Makes the data sets of `data`, on the first rank first.

        Raises:
            LitGPTError: The data can't be read, or has tokens that the model doesn't have.
        """
        data.log = fabric.print
        data.connect(tokenizer, self.train.micro_batch_size, max_seq_length)
        with fabric.rank_zero_first():
            data.prepare_data()
        data.setup()
        check_vocabulary = getattr(data, "check_vocabulary", None)  # a module of the user's own may have none
        if check_vocabulary is not None:
            check_vocabulary(model.config.padded_vocab_size)

    def run(self, data: DataModule, **parts: Any) -> Run:
        """The run that these arguments ask for, on what `data` reads; `parts` are its other fields."""
        own = {shared.name: getattr(self, shared.name) for shared in fields(RunArguments)}
        ahead = getattr(data, "read_ahead", None)  # a module of the user's own may have none
        return Run(**own, read_ahead=0 if ahead is None else ahead(), **parts)


@dataclass
class Result:
    """What a finished run returns."""

    steps: int
    """Optimizer steps, those before a resume included."""
    epochs: float
    tokens: int
    """Input tokens of all steps, all ranks."""
    seconds: float
    """Seconds of training, validation and saving excluded, those before a resume included."""
    tokens_per_second: float
    """Of this process's run, all ranks together."""
    train_loss: float
    """Mean loss of the last logged step: in nats per target token, or of a sample."""
    val_loss: float | None
    """Of the last validation, likewise."""
    final: Path
    """`out_dir/final`, the complete checkpoint folder."""
    curve: Path
    """The picture of the loss curve."""
    report: Path
    """The page with all there is to see."""
    best: Path | None
    """`out_dir/best`, the weights with the lowest validation loss, where they are kept."""


class Interrupted(LitGPTError):
    """Ctrl-C, SIGTERM or SIGHUP: raised by `fit` once everything is saved; says where and how to go on."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = code


@dataclass
class Identity:
    """Which run a folder is of, resumptions included; saved with its state."""

    name: str = field(default_factory=lambda: secrets.token_hex(8))
    files: list[str] = field(default_factory=list)
    """Paths of all files in a `step-*` folder of this run, relative to it."""
