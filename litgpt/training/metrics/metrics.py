"""The metrics of a run: printed, written to the CSV file and to the loggers, and at the end drawn and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.checkpoint.atomic import explain_os_errors, gigabytes
from litgpt.checkpoint.layout import HYPERPARAMETERS
from litgpt.errors import LitGPTError
from litgpt.peft import parameter_counts
from litgpt.runtime import peak_memory, product_dtype
from litgpt.training.batching.batches import Batch
from litgpt.training.metrics.flops import flops_per_token, peak_flops
from litgpt.training.metrics.loggers import CSVLog
from litgpt.training.metrics.machine import describe_machine
from litgpt.training.metrics.progress import SHOWN, Screen, duration, named
from litgpt.training.metrics.report import Report, draw_loss, write_report
from litgpt.training.schedule import Counters, RunLimits

if TYPE_CHECKING:
    from litgpt.training.run import Run
    from litgpt.training.state import TrainingState

WIDTH = 100_000
"""Characters of one sample that the page shows at most."""


class RunMetrics:
    """Logs what a run measures, on the first rank; on the others it prints and writes nothing."""

    def __init__(self, run: Run, limits: RunLimits) -> None:
        self.run, self.fabric, self.limits = run, run.fabric, limits
        self.screen = Screen.on(run.fabric.print, limits, run.fabric.is_global_zero)
        self.csv: CSVLog | None = None
        self.before = Counters()
        self.closed = False
        self.targets = self.padded_tokens = 0

    def open(self, state: TrainingState) -> None:
        """Opens the CSV file; a resumed run continues the one that it wrote before."""
        self.before = replace(state.counters)
        if not self.fabric.is_global_zero:
            return
        folder = self.run.out_dir / "logs" / "csv"
        if self.run.resume is None:
            self.csv = CSVLog(folder)
        else:
            source = self.run.resume.parent / "logs" / "csv" / state.log if state.log else None
            self.csv = CSVLog(folder, state.counters.step, source, state.validations.step)
        state.log = self.csv.name

    def print(self, text: str) -> None:
        """Prints a line."""
        self.screen.print(text)

    def conclude(self, text: str) -> None:
        """Prints a line about what the run ended with."""
        self.screen.conclude(text)

    def count(self, batch: Batch) -> None:
        """Adds a batch to those of the next logged step."""
        self.targets += batch.targets
        self.padded_tokens += batch.padded_tokens

    def log_step(self, counters: Counters, batch: Batch, metrics: dict[str, float]) -> None:
        """Logs an optimizer step: `metrics` (`loss`, `epoch`, `learning_rate`, …), how fast it goes, and how long
        it will take."""
        seconds = counters.training_seconds - self.before.training_seconds
        speed = (counters.tokens - self.before.tokens) / seconds
        metrics = {
            **metrics,
            "total_tokens": counters.tokens,
            "iter_time": seconds / (counters.step - self.before.step),
            "tokens_per_second": speed,
            "target_tokens_per_second": self.targets / seconds,
            "padded_tokens_per_second": self.padded_tokens / seconds,
            "peak_memory_gb": peak_memory(self.fabric.device) / 1e9,
        }
        left = self.limits.seconds_left(counters)
        if left is not None:
            metrics["remaining_time"] = left
        peak = peak_flops(self.fabric.device, product_dtype(self.fabric.strategy.precision.precision))
        if peak is not None:
            length = batch.tokens // len(batch.samples)
            metrics["mfu"] = speed * flops_per_token(self.run.model, length).total / (peak * self.fabric.world_size)
        self.before, self.targets, self.padded_tokens = replace(counters), 0, 0
        self.log(metrics, counters.step)
        self.screen.step(counters, metrics)

    def log_validation(self, step: int, loss: float, others: dict[str, float]) -> None:
        """Logs a validation; `others`: what was measured besides the loss, `ppl` for instance."""
        self.log({"val_loss": loss, **{f"val_{name}": value for name, value in others.items()}}, step)
        self.screen.val_loss = loss
        shown = [named(name, value) for name, value in others.items() if name in SHOWN]
        self.print(" | ".join((f"step {step}", f"validation loss {loss:.4f}", *shown)))

    def log_sample(self, step: int, text: str | None) -> None:
        """Writes down the text that the model generated, if any."""
        if self.csv is not None and text:
            with explain_os_errors(self.run.out_dir):
                self.csv.log_sample(step, text)

    def log_tasks(self, step: int, found: Mapping[str, float]) -> None:
        """Logs what tasks found, by name."""
        self.log(dict(found), step)
        self.print(" | ".join((f"step {step}", *(f"{name} {value:.4f}" for name, value in found.items()))))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Writes metrics to every logger."""
        if self.csv is not None:
            with explain_os_errors(self.run.out_dir):
                for logger in (self.csv, *self.run.loggers):
                    logger.log_metrics({**metrics, "step": step}, step=step)

    def close(self, status: str) -> None:
        """Ends the bar and closes the loggers, once, with the status `success` or `failed`."""
        self.screen.close()
        for logger in self.run.loggers if self.fabric.is_global_zero and not self.closed else ():
            logger.finalize(status)
        self.closed = True

    # -- the end

    def draw(self, state: TrainingState, end: str, folder: Path) -> tuple[Path, Path]:
        """Draws the loss and writes the page; `end` says how the run ended, `folder` is what it saved last. Returns
        both files."""
        picture, page = self.run.out_dir / "loss.png", self.run.out_dir / "report.html"
        if self.csv is not None:
            try:
                draw_loss(self.csv.rows, picture, title=self.run.out_dir.name)
                write_report(self.report(state, end, folder), page)
            except (LitGPTError, OSError) as error:  # a full disk, say, costs no more than the page
                self.print(f"The report is not written: {error} What was trained is safe in {folder}.")
        return picture, page

    def report(self, state: TrainingState, end: str, folder: Path) -> Report:
        """The whole run, resumptions included."""
        assert self.csv is not None
        folders = sorted(path for path in self.run.out_dir.iterdir() if path.is_dir() and self._is_checkpoint(path))
        settings = folder / HYPERPARAMETERS
        return Report(
            title=f"{self.run.out_dir.name}: {self.run.model.config.name or 'a model'}",
            summary=self._summary(state, end),
            rows=self.csv.rows,
            samples=[(step, text[:WIDTH]) for step, text in self.csv.samples],
            kept=[(folder.name, self._describe(folder, state)) for folder in folders],
            settings=settings.read_text(encoding="utf-8") if settings.is_file() else "",
        )

    def _is_checkpoint(self, folder: Path) -> bool:
        return folder.name == "final" or folder.name.startswith("step-") or self._is_best(folder)

    def _is_best(self, folder: Path) -> bool:
        return folder.name == "best" and self.run.train.keep_best

    def _describe(self, folder: Path, state: TrainingState) -> str:
        size = gigabytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        if self._is_best(folder) and state.validations.best_loss is not None:
            found = state.validations
            return f"{size}; after step {found.best_step}, validation loss {found.best_loss:.4f}"
        return size

    def _summary(self, state: TrainingState, end: str) -> list[tuple[str, str]]:
        counters, found = state.counters, state.validations
        losses = [row["loss"] for row in self.csv.rows if "loss" in row] if self.csv is not None else []
        seconds = counters.training_seconds
        trained = sum(part.numel() for part in self.run.model.parameters() if part.requires_grad)
        total = sum(parameter_counts(self.run.model, self.run.owns))
        rows = [
            ("Ended", end),
            ("Parameters", f"{total:,}, of which {trained:,} trained"),
            ("Optimizer steps", f"{counters.step:,} ({counters.samples / len(self.run.train_dataset):.2f} epochs)"),
            ("Tokens", f"{counters.tokens:,}"),
            ("Time in training", f"{duration(seconds)} ({counters.tokens / seconds if seconds else 0:,.0f} tokens/s)"),
            ("Training loss, last logged", f"{losses[-1]:.4f}" if losses else "none"),
        ]
        rows += self._preferences()
        if found.loss is not None:
            rows.append(("Validation loss, last", f"{found.loss:.4f}"))
        if found.best_loss is not None:
            rows.append(("Validation loss, lowest", f"{found.best_loss:.4f}, after step {found.best_step:,}"))
        return [*rows, *describe_machine(self.fabric.device, self.fabric.world_size)]

    def _preferences(self) -> list[tuple[str, str]]:
        """The last accuracies and margins, and the first, where there are any."""
        rows = []
        for name in ("val_accuracy", "accuracy", "val_margin", "margin"):
            values = [row[name] for row in self.csv.rows if name in row] if self.csv is not None else []
            if values:
                what = f"{'Validation' if name.startswith('val_') else 'Training'} {name.removeprefix('val_')}"
                rows.append((f"{what}, last", f"{values[-1]:.4f}, the first {values[0]:.4f}"))
        return rows
