"""The one training loop: `fit(run)` is the only place that steps an optimizer.

Pretraining and every finetuning method differ only in the values of a `Run`. The loss of an optimizer step is the sum
of the losses of all its target tokens divided by their number, over micro-batches and ranks: how the samples are cut
into micro-batches, packed or padded, on one rank or eight, never changes the result.

Legend: a *sample* is `{"input_ids": (T,) int64, "labels": (T,) int64}`, not shifted, labels -100 where masked; a
*step* is an optimizer step over `train.global_batch_size` samples; *tokens* are input tokens of samples (padding is
not counted).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.writer import atomic_folder
from litgpt.errors import LitGPTError
from litgpt.loggers import CSVLog
from litgpt.runtime import product_dtype
from litgpt.training.batches import Batch, Batching, sum_over_ranks
from litgpt.training.objective import NextToken
from litgpt.training.optim import make_optimizer
from litgpt.training.order import Shuffled
from litgpt.training.packing import input_length
from litgpt.training.progress import Screen, duration, flops_per_token, peak_flops
from litgpt.training.report import draw_loss
from litgpt.training.schedule import Counters, Limits, make_schedule
from litgpt.training.state import load_state, load_weights, save_state
from litgpt.training.stopping import StopRequest
from litgpt.training.validation import validate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.model import GPT


class Samples(Protocol):
    """A map-style data set. An optional method `epoch(n: int)` is called before the samples of epoch `n` are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Logger(Protocol):
    """Where metrics go besides the CSV file (Lightning's loggers have this shape)."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


def everything(name: str) -> bool:
    """The `owns` of full training."""
    return True


@dataclass
class Run:
    """All that one training run is made of.

    A command makes the fabric (`runtime.make_fabric`, which launches the ranks), builds `model` with its weights
    loaded in `runtime.parameter_dtype(precision)` and any method attached, then calls `fit`. The loop moves the model
    to the device, sets `requires_grad` from `owns`, makes the optimizer, trains, validates, saves.
    """

    model: GPT
    train_dataset: Samples
    val_dataset: Samples | None
    """None or empty: no validation."""
    train: TrainArgs
    eval: EvalArgs
    out_dir: Path
    """Gets `step-*/`, `final/`, `logs/csv/version_N/metrics.csv` and `loss.png`."""
    save: Callable[[Path], None]
    """Writes a complete checkpoint folder (weights as they are in memory, configuration, tokenizer …) into the
    existing, empty folder it is given. Called on rank zero only, inside `atomic_folder`: a killed run leaves no half
    folder."""
    fabric: Fabric
    owns: Callable[[str], bool] = everything
    """Which parameters (by `model.named_parameters()` name) train. The rest is frozen."""
    weights_file: str = "lit_model.pth"
    """The file of a saved folder that holds every owned parameter under its `named_parameters()` name (flat or under
    "model"): what a resumed run reads back."""
    optimizer: str | dict[str, Any] = "AdamW"
    """A class name of `torch.optim`, a dotted class path, or `{"class_path": …, "init_args": {…}}`."""
    sample: Callable[[int], None] | None = None
    """Shows what the model says after each validation; gets the step. Called on every rank with the model in eval
    mode and no gradients; prints through `fabric.print`."""
    loggers: Sequence[Logger] = ()
    """Besides CSV, which is always written: `loggers.named_loggers(logger_name, out_dir, log)`."""
    seed: int = 1337
    resume: Path | None = None
    """A `step-*` folder to go on from: `state.resume_point(resume, out_dir)`. Weights, optimizer, and counters are
    restored; the order of samples and dropout follow from seed and counters, so the run continues as if never
    stopped."""
    step_digits: int = 6
    """Width of the number in `step-%0Nd`: LitGPT has 6 in finetuning, 8 in pretraining."""
    whole_final_validation: bool = True
    """The last validation reads all of `val_dataset` (False: `eval.max_iters` micro-batches, as the others)."""


@dataclass
class Result:
    """What a finished run has to tell."""

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
    """Mean loss per target token of the last logged step, in nats."""
    val_loss: float | None
    """Of the last validation, in nats per target token."""
    final: Path
    """`out_dir/final`, the complete checkpoint folder."""
    curve: Path
    """The picture of the loss curve."""


class Interrupted(LitGPTError):
    """Ctrl-C or SIGTERM: raised by `fit` once everything is saved; says where and how to go on."""


def fit(run: Run) -> Result:
    """Train as `run` says until the first of its limits (`max_steps`, `epochs`, `max_tokens`, `max_time`).

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived; a `step-*` folder to resume from has been written.
        LitGPTError: the run cannot start (no limit, no samples, nothing to train, a resume that does not fit).
    """
    loop = _Loop(run)
    with StopRequest() as stop:
        loop.begin()
        while not loop.limits.reached(loop.counters):
            loop.step()
            if loop.agree(stop.signal is not None):
                folder = loop.save_step()
                loop.draw()
                name = stop.signal.name if stop.signal else "a signal to another rank"
                done = f"Stopped by {name} after step {loop.counters.step}"
                raise Interrupted(f"{done}; all is saved in {folder}: the same command with --resume auto goes on.")
            loop.after_step()
        return loop.end()


class _Loop:
    """A run with everything that `fit` makes for it."""

    def __init__(self, run: Run) -> None:
        if not len(run.train_dataset):
            raise LitGPTError("There is nothing to train on: the training data set is empty.")
        self.run, self.fabric, self.counters = run, run.fabric, Counters()
        self.limits = Limits.of(run.train, len(run.train_dataset))
        self.samples, self.batching = Shuffled(run.train_dataset, run.seed), Batching.of(run.train)
        self.screen = Screen.on(self.fabric.print, self.limits, self.fabric.is_global_zero)
        if run.resume is not None:
            load_weights(run, run.resume)
        for name, parameter in run.model.named_parameters():
            parameter.requires_grad = run.owns(name) and parameter.is_floating_point()
        self.objective = self.fabric.setup_module(NextToken(run.model))
        optimizer = make_optimizer(
            run.optimizer, self._trained(), fused=self.fabric.strategy.precision.precision != "16-mixed"
        )
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.schedule, notice = make_schedule(
            run.train, len(run.train_dataset), self._expected_steps(), max(self.peaks)
        )
        if notice:
            self.screen.line(notice)
        if run.resume is not None:
            self.counters = load_state(run, run.resume, optimizer)
        self.resumed = replace(self.counters)
        self.csv: CSVLog | None = None
        self.loss = float("nan")
        self.val_loss: float | None = None
        self.logged = replace(self.counters)
        self.start = time.perf_counter()

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.run.model.named_parameters() if parameter.requires_grad]

    def _expected_steps(self) -> int | None:
        """How many steps the run will have; where tokens limit it, by the lengths of its first samples."""
        tokens_per_sample = 1.0
        if self.limits.max_tokens is not None:
            first = self.samples.read(0, min(32, len(self.run.train_dataset)))
            tokens_per_sample = max(1.0, fmean(input_length(sample, self.batching.max_seq_length) for sample in first))
        return self.limits.steps(self.run.train.global_batch_size, tokens_per_sample)

    # -- the phases of a run

    def begin(self) -> None:
        """Opens the logs, tells what will be trained, validates if asked to."""
        run = self.run
        if self.fabric.is_global_zero:
            self.csv = CSVLog(run.out_dir / "logs" / "csv", self.counters.step if run.resume else None)
        trained = sum(parameter.numel() for _, parameter in self._trained())
        total = sum(parameter.numel() for parameter in run.model.parameters())
        self.screen.line(f"Training {trained:,} of {total:,} parameters on {len(run.train_dataset):,} samples.")
        if run.resume:
            self.screen.line(f"Going on after step {self.counters.step}, from {run.resume}.")
        self.objective.train()
        if run.eval.initial_validation and not self.counters.step:
            self.validate(whole=run.whole_final_validation)

    def step(self) -> None:
        """One optimizer step."""
        run, counters, began = self.run, self.counters, time.perf_counter()
        left = self.limits.samples_left(counters)
        size = run.train.global_batch_size if left is None else min(run.train.global_batch_size, left)
        batch = self.batching.cut(self.samples.read(counters.samples, size), self.fabric.world_size)
        rate = self._set_rates()
        torch.manual_seed(_step_seed(run.seed, counters.step, self.fabric.global_rank))
        loss, norm = self._descend(batch)
        counters.step += 1
        counters.samples += size
        counters.tokens += batch.tokens
        logged = counters.step % run.train.log_interval == 0 or self.limits.reached(counters)
        if logged:
            self.loss = sum_over_ranks(self.fabric, loss) / batch.targets if batch.targets else float("nan")
        counters.training_seconds += time.perf_counter() - began
        if logged:
            self._log_step(batch, rate, norm)

    def agree(self, stopping: bool) -> bool:
        """Lets all ranks know the first one's clock, by which `max_time` is measured, and whether any rank was told
        to stop."""
        seconds = self.resumed.seconds + time.perf_counter() - self.start
        if self.fabric.world_size > 1:
            known = torch.tensor(
                [float(stopping), seconds if self.fabric.is_global_zero else 0.0], device=self.fabric.device
            )
            stopping, seconds = self.fabric.all_reduce(known, reduce_op="sum").tolist()
        self.counters.seconds = seconds
        return bool(stopping)

    def after_step(self) -> None:
        """Validation and saving, where they are due."""
        run, step = self.run, self.counters.step
        last = self.limits.reached(self.counters)
        if step % run.eval.interval == 0 and not (last and run.eval.final_validation):
            self.validate()
        if run.train.save_interval is not None and step % run.train.save_interval == 0:
            self.save_step()

    def end(self) -> Result:
        """The last validation, the final checkpoint, the picture, and what there is to tell."""
        run, counters = self.run, self.counters
        if run.eval.final_validation:
            self.validate(whole=run.whole_final_validation)
        final = self._save(run.out_dir / "final", with_state=False)
        seconds = counters.training_seconds - self.resumed.training_seconds
        result = Result(
            steps=counters.step,
            epochs=self._epoch(),
            tokens=counters.tokens,
            seconds=counters.training_seconds,
            tokens_per_second=(counters.tokens - self.resumed.tokens) / seconds if seconds else 0.0,
            train_loss=self.loss,
            val_loss=self.val_loss,
            final=final,
            curve=self.draw(),
        )
        for logger in run.loggers if self.fabric.is_global_zero else ():
            logger.finalize("success")
        val = "" if self.val_loss is None else f", validation loss {self.val_loss:.4f}"
        if counters.step == self.resumed.step:
            self.screen.line(f"Nothing was left to train: the limits are reached after {counters.step} steps.")
            return result
        self.screen.line(
            f"Done: {result.steps} steps, {result.tokens:,} tokens in {duration(result.seconds)} "
            f"({result.tokens_per_second:,.0f} tokens/s), training loss {self.loss:.4f}{val}."
        )
        self.screen.line(f"Checkpoint: {final}. Loss curve: {result.curve}.")
        return result

    # -- parts of a step

    def _set_rates(self) -> float:
        """Gives every parameter group its learning rate for the coming step; returns the first group's."""
        progress = self.limits.progress(self.counters)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.schedule.rate(peak, self.counters.step, progress)
        return float(self.optimizer.param_groups[0]["lr"])

    def _descend(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Gradients of all micro-batches, then the optimizer; this rank's sum of losses, and the norm of the
        gradients where they are clipped."""
        fabric, world = self.fabric, self.fabric.world_size
        total = torch.zeros((), dtype=torch.float32, device=fabric.device)
        if not batch.targets:
            self.screen.line(
                f"Step {self.counters.step + 1} is skipped: none of its samples has a token to learn from."
            )
            return total, None
        share = world / batch.targets  # ranks' gradients are averaged, hence `world`
        micro_batches = list(batch.of_rank(fabric.global_rank))
        for number, micro_batch in enumerate(micro_batches, start=1):
            inputs, targets = fabric.to_device((micro_batch.inputs, micro_batch.targets))
            with fabric.no_backward_sync(self.objective, enabled=number < len(micro_batches)):
                loss = self.objective(inputs, targets, micro_batch.lengths)
                fabric.backward(loss * share)
            total += loss.detach()
        norm = None
        if self.run.train.max_norm:
            norm = fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=self.run.train.max_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm

    # -- what is told and kept

    def _epoch(self) -> float:
        return self.counters.samples / len(self.run.train_dataset)

    def _log_step(self, batch: Batch, rate: float, norm: Tensor | None) -> None:
        counters, before = self.counters, self.logged
        self.logged = replace(counters)
        seconds = counters.training_seconds - before.training_seconds
        speed = (counters.tokens - before.tokens) / seconds
        metrics = {
            "loss": self.loss,
            "epoch": self._epoch(),
            "learning_rate": rate,
            "total_tokens": counters.tokens,
            "iter_time": seconds / (counters.step - before.step),
            "tokens_per_second": speed,
        }
        left = self.limits.seconds_left(counters)
        if left is not None:
            metrics["remaining_time"] = left
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        precision = self.fabric.strategy.precision.precision
        peak = peak_flops(self.fabric.device, product_dtype(precision))
        if peak is not None:
            length = batch.tokens // len(batch.samples)
            metrics["mfu"] = speed * flops_per_token(self.run.model, length) / (peak * self.fabric.world_size)
        self.log(metrics)
        self.screen.step(counters, self._epoch(), self.loss, rate, speed)

    def validate(self, whole: bool = False) -> None:
        """The loss on the validation set, or on its first `eval.max_iters` micro-batches; then an example, if the
        run has one."""
        run, val = self.run, self.run.val_dataset
        count = None if whole else run.eval.max_iters * run.train.micro_batch_size
        if val is None or not len(val) or count == 0:
            return
        loss = validate(self.fabric, self.objective, val, self.batching, count)
        perplexity = math.exp(min(loss, 700.0))
        self.log({"val_loss": loss, "val_ppl": perplexity})
        self.val_loss = self.screen.val_loss = loss
        self.screen.line(f"step {self.counters.step} | validation loss {loss:.4f} | perplexity {perplexity:.2f}")
        if run.sample is not None:
            self.objective.eval()
            with torch.no_grad():
                run.sample(self.counters.step)
            self.objective.train()

    def log(self, metrics: dict[str, float]) -> None:
        """Hands metrics of the current step to every logger."""
        if self.csv is not None:
            for logger in (self.csv, *self.run.loggers):
                logger.log_metrics({**metrics, "step": self.counters.step}, step=self.counters.step)

    def save_step(self) -> Path:
        """Saves a folder to resume from."""
        return self._save(self.run.out_dir / f"step-{self.counters.step:0{self.run.step_digits}d}", with_state=True)

    def _save(self, folder: Path, with_state: bool) -> Path:
        if self.fabric.is_global_zero:
            with atomic_folder(folder) as unfinished:
                self.run.save(unfinished)
                if with_state:
                    save_state(unfinished, self.run, self.optimizer.optimizer, self.counters)
        self.fabric.barrier()
        return folder

    def draw(self) -> Path:
        """Draws the loss so far."""
        path = self.run.out_dir / "loss.png"
        if self.csv is not None:
            draw_loss(self.csv.rows, path, title=self.run.out_dir.name)
        return path


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Of a step's random numbers (dropout), so that they follow from the counters and need not be stored."""
    return (seed * 1_000_003 + step * 7919 + rank) % 2**63
