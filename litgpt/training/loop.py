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
import re
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, Signals
from statistics import fmean

import torch

from litgpt.checkpoint.atomic import atomic_folder
from litgpt.checkpoint.writer import gather_owned
from litgpt.errors import LitGPTError, one_line
from litgpt.kernels.linear import use_fast_linear
from litgpt.kernels.sdpa import varying_shapes
from litgpt.model.sharding import is_sharded
from litgpt.peft import narrow_frozen, parameter_counts
from litgpt.runtime import product_dtype
from litgpt.training.batching.batches import Batch, Batching, sum_over_ranks
from litgpt.training.batching.order import Shuffled
from litgpt.training.batching.packing import input_length, one_shape
from litgpt.training.batching.read_ahead import ReadAhead
from litgpt.training.blocks import restore, shape_blocks
from litgpt.training.incompatibilities import TrainingSetup, check_incompatibilities
from litgpt.training.loss import NextToken
from litgpt.training.metrics.metrics import RunMetrics
from litgpt.training.metrics.profiling import profiled
from litgpt.training.metrics.progress import duration
from litgpt.training.metrics.validation import Validations, validate
from litgpt.training.optim.optimizers import check_sharded, optimizer_for, scale_rates, trained_parameters
from litgpt.training.retention import claimed, files_in, left_before, prune
from litgpt.training.run import Identity, Interrupted, Objective, Result, Run
from litgpt.training.schedule import Counters, GroupRates, RunLimits, make_schedule
from litgpt.training.sharded import write_optimizer
from litgpt.training.signals import stop_requests
from litgpt.training.state import STATE_FILE, SavedState, TrainingState, load_state, load_weights, save_state
from litgpt.training.step import OptimizerStep


def fit(run: Run) -> Result:
    """Train as `run` says until the first of its limits (`max_steps`, `epochs`, `max_tokens`, `max_time`).

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP arrived; a `step-*` folder to resume from has been written.
        LitGPTError: the run cannot start (no limit, no samples, nothing to train, a resume that does not fit).
    """
    with ExitStack() as open_while_running:
        _claim(run, open_while_running)
        open_while_running.callback(restore, run.model)
        loop = _Loop(run)
        open_while_running.callback(loop.optimizer_step.close)
        open_while_running.callback(loop.batches.close)
        stop = open_while_running.enter_context(stop_requests(run.fabric.is_global_zero))
        try:
            on_cuda = run.fabric.device.type == "cuda"
            if not (on_cuda and one_shape(loop.samples.read(0, min(8, len(run.train_dataset))))):
                open_while_running.enter_context(varying_shapes())
            loop.begin()
            profile_step = open_while_running.enter_context(profiled(run))
            while not loop.finished():
                loop.step()
                profile_step()
                if loop.agree(stop.signal is not None):
                    raise loop.interrupted(stop.signal)
                loop.after_step()
            return loop.end()
        except BaseException as error:
            loop.metrics.close("failed")
            if run.fabric.world_size > 1 and _tells_of_a_lost_process(error):
                raise LitGPTError(
                    f"Another process of this run is gone, or does not answer ({one_line(error):.200}); what it "
                    f"printed last says why. {loop.resumable()}"
                ) from error
            raise


LOST = re.compile(
    "connection (closed|reset)|broken pipe|timed out|timeout|peer|no route to host|remote process exited", re.IGNORECASE
)


def _tells_of_a_lost_process(error: BaseException) -> bool:
    """Whether a collective failed because a process that takes part in it ended or hangs: gloo and NCCL say so in
    their own words, in errors of their own or plain ones."""
    own = isinstance(error, torch.distributed.DistError)
    return own or (type(error) is RuntimeError and LOST.search(str(error)) is not None)


def _claim(run: Run, held: ExitStack) -> None:
    """Makes sure, until `held` is closed, that no other run writes to `out_dir`; all ranks learn whether one does."""
    refusal = ""
    if run.fabric.is_global_zero:
        try:
            held.enter_context(claimed(run.out_dir))
        except LitGPTError as error:
            refusal = str(error)
    refusal = run.fabric.broadcast(refusal)
    if refusal:
        raise LitGPTError(refusal)


class _Loop:
    """A run with everything that `fit` makes for it."""

    def __init__(self, run: Run) -> None:
        if not len(run.train_dataset):
            raise LitGPTError("There is nothing to train on: the training data set is empty.")
        if (run.train.patience or run.train.keep_best) and not _validation_size(run):
            raise LitGPTError(
                "train.patience and train.keep_best go by the validation loss, and nothing is validated: "
                "leave them out, or give validation data (and eval.max_iters above 0)."
            )
        fabric = run.fabric
        precision = fabric.strategy.precision.precision
        sharded = is_sharded(run.model)
        check_incompatibilities(TrainingSetup(run.train, precision, fabric.device.type, fabric.world_size, sharded))
        self.run, self.fabric = run, fabric
        self.state = TrainingState(Counters(), Validations(), Identity())
        self.limits = RunLimits.of(run.train, len(run.train_dataset))
        self.plain = _objective(run)
        self.samples = Shuffled(run.train_dataset, run.seed)
        self.batching = Batching.of(run.train, self.plain.sequences, self.plain.per_sample)
        self.batches = ReadAhead(self._read, 0 if run.rollouts is not None else run.read_ahead)
        self.metrics = RunMetrics(run, self.limits)
        saved = None if run.resume is None else SavedState.read(run.resume, mmap=is_sharded(run.model))
        self.changes = "" if saved is None else saved.changes(run)
        if saved is not None:
            load_weights(run, saved.folder)
        for name, parameter in run.model.named_parameters():
            parameter.requires_grad = run.owns(name) and parameter.is_floating_point()
        if precision.endswith("-mixed") and not sharded:  # FSDP2 gathers parameters of one dtype
            narrow_frozen(run.model, product_dtype(precision))
        shape_blocks(run)
        self.objective = self.fabric.setup_module(self.plain)
        if not run.train.compile:  # one compilation is for all blocks, and this makes each layer's forward its own
            # As the engine of an example will: validations before and after it are alike.
            use_fast_linear(run.model, headroom=0)
        if sharded:
            check_sharded(run.optimizer, trained_parameters(run.model)[0][1])
        optimizer = optimizer_for(run.model, run.optimizer, run.train, precision)
        scale_rates(optimizer, trained_parameters(run.model), run.rate_factor)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        self.optimizer_step = OptimizerStep(run, self.objective, self.optimizer, self.metrics.print)
        self.rates = GroupRates.of(optimizer)
        steps = self._expected_steps()
        self.metrics.screen.n_steps = steps if self.limits.max_tokens is None else None  # by tokens it is a guess
        self.schedule, notice = make_schedule(run.train, len(run.train_dataset), steps, self.rates.full)
        if notice:
            self.metrics.print(notice)
        if saved is not None:
            load_state(run, saved, optimizer, self.state)
            if run.rollouts is not None:
                run.rollouts.restore(saved.folder)
        self.resumed = replace(self.counters)
        self.loss = float("nan")
        self.tasks_step = -1
        self.start = time.perf_counter()

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def _expected_steps(self) -> int | None:
        """How many steps the run will have; where tokens limit it, by the lengths of its first samples."""
        tokens_per_sample = 1.0
        if self.limits.max_tokens is not None:
            first = self.samples.read(0, min(32, len(self.run.train_dataset)))
            tokens_per_sample = max(1.0, fmean(input_length(sample, self.batching.max_seq_length) for sample in first))
        steps = self.limits.steps(self.run.train.global_batch_size, tokens_per_sample)
        if steps is None or self.updates == 1:
            return steps
        return min(steps * self.updates, self.limits.max_steps or sys.maxsize)

    # -- the phases of a run

    def begin(self) -> None:
        """Opens the logs, prints what will be trained, validates if asked to."""
        run = self.run
        if not run.resume and (notice := left_before(run.out_dir)):
            self.metrics.print(notice)
        self.metrics.open(self.state)
        trained = sum(parameter.numel() for _, parameter in trained_parameters(run.model))
        total = sum(parameter_counts(run.model, run.owns))
        self.metrics.print(f"Training {trained:,} of {total:,} parameters on {len(run.train_dataset):,} samples.")
        if run.resume:
            self.metrics.print(f"Going on after step {self.counters.step}, from {run.resume}. {self.changes}".strip())
        self.objective.train()
        if self.counters.step:
            if self.state.validations.step != self.counters.step:
                self.validate_if_due()  # a signal came between the step and its validation
        elif run.eval.initial_validation:
            self.validate(whole=run.whole_final_validation)
            self.run_tasks()

    def finished(self) -> bool:
        """Whether a limit is reached, or validation has stopped getting better."""
        return self.limits.reached(self.counters) or self.state.validations.exhausted(self.run.train.patience)

    def step(self) -> None:
        """One optimizer step."""
        run, counters, began = self.run, self.counters, time.perf_counter()
        left = self.limits.samples_left(counters)
        size = run.train.global_batch_size if left is None else min(run.train.global_batch_size, left)
        batch = self.batches.take(counters.samples, size)
        rate = self._set_rates()
        torch.manual_seed(_step_seed(run.seed, counters.step, self.fabric.global_rank))
        logged = (counters.step + 1) % run.train.log_interval == 0
        loss, norm = self.optimizer_step(batch, counters, wants_norm=logged)
        counters.step += 1
        counters.samples += 0 if counters.step % self.updates else size
        counters.tokens += batch.tokens
        logged = logged or self.limits.reached(counters)
        if logged:
            self.loss = sum_over_ranks(self.fabric, loss) / batch.units if batch.units else float("nan")
        counters.training_seconds += time.perf_counter() - began
        self.metrics.count(batch)
        measured = self._measured() if logged else {}
        if logged:
            metrics = {"loss": self.loss, **measured, "epoch": self._epoch(), "learning_rate": rate}
            metrics["data_time"] = self.batches.waited()
            if norm is not None:
                metrics["grad_norm"] = float(norm)
            if run.train.guard is not None:
                metrics["skipped_steps"] = counters.skipped
            self.metrics.log_step(counters, batch, metrics)
            if run.rollouts is not None:
                self.metrics.log_sample(counters.step, run.rollouts.shown())

    def agree(self, stopping: bool) -> bool:
        """Gives all ranks the first one's clock, by which `max_time` is measured; returns whether any rank got a
        signal to stop."""
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
        self.validate_if_due()
        if run.train.save_interval is not None and step % run.train.save_interval == 0:
            self.save_step()

    def interrupted(self, number: Signals | None) -> Interrupted:
        """Saves everything; returns the error to raise. `number`: None where another rank got the signal."""
        by = number.name if number is not None else "a signal to another rank"
        folder = self.save_step()
        self.metrics.draw(self.state, f"stopped by {by}, to be resumed", folder)
        done = f"Stopped by {by} after step {self.counters.step}"
        code = 130 if number == SIGINT else 1
        return Interrupted(f"{done}; all is saved in {folder}: the same command with --resume auto goes on.", code)

    def end(self) -> Result:
        """Validates a last time, writes the final checkpoint, the picture and the page, and returns the result."""
        run, counters, found = self.run, self.counters, self.state.validations
        early = not self.limits.reached(counters)
        if run.eval.final_validation:
            self.validate(whole=run.whole_final_validation)
            self.run_tasks()
        final = self._save(run.out_dir / "final")
        best = run.out_dir / "best" if run.train.keep_best and found.best_loss is not None else None
        mistake = self._complete(final, best)
        seconds = counters.training_seconds - self.resumed.training_seconds
        curve, page = self.metrics.draw(self.state, "early, by train.patience" if early else "as planned", final)
        result = Result(
            steps=counters.step,
            epochs=self._epoch(),
            tokens=counters.tokens,
            seconds=counters.training_seconds,
            tokens_per_second=(counters.tokens - self.resumed.tokens) / seconds if seconds else 0.0,
            train_loss=self.loss,
            val_loss=found.loss,
            final=final,
            curve=curve,
            report=page,
            best=best,
        )
        self.metrics.close("success")
        if early:
            self.metrics.print(
                f"Stopped early: {found.worse} validations in a row found no lower loss than "
                f"{found.best_loss or 0:.4f}, of step {found.best_step} (train.patience)."
            )
        self._conclude(result)
        if mistake is not None:
            raise mistake
        return result

    def _complete(self, *folders: Path | None) -> LitGPTError | None:
        """Lets the run complete its folders; returns what was wrong with the first that it couldn't."""
        mistake = None
        if self.run.complete is not None and self.fabric.is_global_zero:
            for folder in filter(None, folders):
                try:
                    self.run.complete(folder)
                except LitGPTError as error:
                    mistake = mistake or error
        self.fabric.barrier()
        return mistake

    def _conclude(self, result: Result) -> None:
        if self.counters.step == self.resumed.step:
            self.metrics.print(f"Nothing was left to train: the limits are reached after {result.steps} steps.")
            return
        val = "" if result.val_loss is None else f", validation loss {result.val_loss:.4f}"
        self.metrics.conclude(
            f"Done: {result.steps} steps, {result.tokens:,} tokens in {duration(result.seconds)} "
            f"({result.tokens_per_second:,.0f} tokens/s), training loss {self.loss:.4f}{val}."
        )
        best = "" if result.best is None else f" Best by validation: {result.best}."
        self.metrics.conclude(f"Checkpoint: {result.final}.{best} Loss curve: {result.curve}. Report: {result.report}.")

    # -- parts of a step

    @property
    def updates(self) -> int:
        """Optimizer steps that learn from each portion of samples."""
        return 1 if self.run.rollouts is None else self.run.rollouts.updates

    def _read(self, position: int, size: int) -> Batch:
        """What a step learns from, of which this rank's samples are read."""
        portion, rollouts = self.samples.read(position, size), self.run.rollouts
        if rollouts is not None:
            made = rollouts.make(self.counters.step // self.updates, portion)
            return self.batching.cut(made, self.fabric.world_size)
        batch = self.batching.cut(portion, self.fabric.world_size)
        portion.fetch(batch.places(self.fabric.global_rank))
        return batch

    def _set_rates(self) -> float:
        """Gives every parameter group its learning rate for the coming step; returns the first group's."""
        rate = self.schedule.rate(self.rates.full, self.counters.step, self.limits.progress(self.counters))
        for group, factor in zip(self.optimizer.param_groups, self.rates.factors, strict=True):
            group["lr"] = factor * rate
        return float(self.optimizer.param_groups[0]["lr"])

    def _measured(self) -> dict[str, float]:
        """What the objective has measured since it was asked last, over all ranks."""
        sums = self.plain.measured()
        if sums is None:
            return {}
        return self.plain.metrics([sum_over_ranks(self.fabric, part) for part in sums.unbind()])

    def resumable(self) -> str:
        """What a user can do after a crash."""
        kept = sorted(self.run.out_dir.glob("step-*"))
        if not kept:
            return "No step-* folder was saved yet (train.save_interval)."
        return f"The same command with --resume auto goes on from {kept[-1]}."

    # -- validation and saving

    def _epoch(self) -> float:
        return self.counters.samples / len(self.run.train_dataset)

    def validate_if_due(self) -> None:
        """The validation that `eval.interval` asks for after this step, unless the final one does the same anyway."""
        run, step = self.run, self.counters.step
        if step % run.eval.interval:
            return
        by_loss = run.train.keep_best or run.train.patience  # which compare validations of one size alone
        if not (self.limits.reached(self.counters) and run.eval.final_validation) or by_loss:
            self.validate()
            self.run_tasks()

    def validate(self, whole: bool = False) -> None:
        """The loss on the validation set, or on its first `eval.max_iters` micro-batches; then an example, if the
        run has one. One that was made after this very step is not made again."""
        run, val, found, step = self.run, self.run.val_dataset, self.state.validations, self.counters.step
        usual = _validation_size(run)
        count = len(val) if whole and val is not None else usual
        if val is None or not count or (found.step, found.samples) == (step, count):
            return
        self.batches.settle()  # both may read the same files
        loss = validate(self.fabric, self.objective, val, self.batching, count, self.metrics.screen.validating)
        best = found.note(step, count, loss, compared=count == usual)
        found_too = self._measured()
        per_token = {} if self.plain.per_sample else {"ppl": math.exp(min(loss, 700.0))}
        self.metrics.log_validation(step, loss, {**found_too, **per_token})
        if best and run.train.keep_best:
            self._save(run.out_dir / "best")
        if run.sample is not None:
            self.objective.eval()
            with torch.no_grad():
                self.metrics.log_sample(step, run.sample(step))
            self.objective.train()

    def run_tasks(self) -> None:
        """What the run's own tasks find, unless they ran after this very step."""
        run, step = self.run, self.counters.step
        if run.evaluate is None or self.tasks_step == step:
            return
        self.tasks_step = step
        self.objective.eval()
        with torch.no_grad():
            self.metrics.log_tasks(step, run.evaluate(step))
        self.objective.train()

    def save_step(self) -> Path:
        """Saves a folder to resume from; older ones go where `train.keep_last` says so."""
        folder = self.run.out_dir / f"step-{self.counters.step:0{self.run.step_digits}d}"
        self._save(folder, with_state=True)
        if self.run.train.keep_last is not None and self.fabric.is_global_zero:
            prune(self.run.out_dir, self.state.identity, self.run.train.keep_last)
        return folder

    def _save(self, folder: Path, with_state: bool = False) -> Path:
        run, first = self.run, self.fabric.is_global_zero
        # What an earlier run left there can't be resumed from while its files are replaced one by one.
        if first and (folder / STATE_FILE).is_file():
            (folder / STATE_FILE).unlink()
        with atomic_folder(folder) if first else nullcontext(folder) as unfinished:
            if first:
                run.save(unfinished)
            else:
                gather_owned(run.model, run.owns)
            if with_state:
                if is_sharded(run.model):
                    unfinished = Path(self.fabric.broadcast(str(unfinished)))
                if first or is_sharded(run.model):
                    optimizer = write_optimizer(unfinished, self.optimizer.optimizer)
                if first:
                    save_state(unfinished, run, optimizer, self.state)
                    if run.rollouts is not None:
                        run.rollouts.save(unfinished, self.counters.step)
                    self.state.identity.files = files_in(unfinished)
        self.fabric.barrier()
        return folder


def _objective(run: Run) -> Objective:
    if run.objective is not None:
        return run.objective(run.model)
    return NextToken(run.model, run.train.z_loss, run.train.label_smoothing)


def _validation_size(run: Run) -> int:
    """Samples of one validation during training."""
    if run.val_dataset is None:
        return 0
    return min(len(run.val_dataset), run.eval.max_iters * run.train.micro_batch_size)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Of a step's random numbers (dropout), so that they follow from the counters and need not be stored."""
    return (seed * 1_000_003 + step * 7919 + rank) % 2**63
