"""Where metrics go: a CSV file always, and one of the well-known experiment loggers by name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import LogArgs
from litgpt.errors import LitGPTError, MissingPackageError, closest, is_quiet, quoted

if TYPE_CHECKING:
    from litgpt.training.run import Logger

Row = dict[str, float]


class CSVLog:
    """`<folder>/version_N/metrics.csv`: a row a call, a column for every metric seen so far; and, beside it,
    `samples.jsonl`: what the model said on the way.

    Each row is on disk when `log_metrics` returns. A resumed run goes on in the file it came from and drops the rows
    after the step it resumes from, so that its file reads as if it had never stopped.

    Args:
        folder: Where the versions are; this one gets the next number.
        resume_step: Go on after so many steps.
        validated: The step after which the last validation was that the run to go on with knows of; None: all are.
        resume_from: The version to go on with, a folder; None: the newest in `folder`. Of one elsewhere, the rows are
            copied.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        resume_from: Path | None = None,
        validated: int | None = None,
    ) -> None:
        versions = sorted(int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit())
        self.rows: list[Row] = []
        self.samples: list[tuple[int, str]] = []
        next_version = folder / f"version_{versions[-1] + 1 if versions else 0}"
        before = resume_from or (folder / f"version_{versions[-1]}" if versions else None)
        if resume_step is not None and before is not None:
            validated = resume_step if validated is None else min(validated, resume_step)
            self.rows = [
                row
                for row in read_metrics(before / "metrics.csv")
                if row["step"] <= (validated if "val_loss" in row else resume_step)
            ]
            self.samples = [sample for sample in read_samples(before / "samples.jsonl") if sample[0] <= validated]
            here = before.parent.resolve() == folder.resolve() and before.is_dir()
            version = before if here else next_version
        else:
            version = next_version
        self.path = version / "metrics.csv"
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        version.mkdir(parents=True, exist_ok=True)
        if self.rows or self.path.exists():
            self._write_all()
        if self.samples or self._samples_path.exists():
            self._samples_path.write_text("".join(map(_line, self.samples)), encoding="utf-8")

    @property
    def name(self) -> str:
        """`version_N`."""
        return self.path.parent.name

    @property
    def _samples_path(self) -> Path:
        return self.path.with_name("samples.jsonl")

    def log_sample(self, step: int, text: str) -> None:
        """Adds what the model said after a step."""
        self.samples.append((step, text))
        self.path.parent.mkdir(parents=True, exist_ok=True)  # if somebody has deleted it
        with self._samples_path.open("a", encoding="utf-8") as file:
            file.write(_line((step, text)))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row."""
        row = {**metrics, **({} if step is None else {"step": step})}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or not self.path.exists():
            self._write_all()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def finalize(self, status: str) -> None:
        """Nothing is left to write."""

    def _write_all(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.csv`; empty cells are left out. No file, no rows."""
    if not path.is_file():
        return []
    whole, end, _ = path.read_text().rpartition("\n")  # a killed run may have left half a line
    cells = csv.DictReader((whole + end).splitlines())
    return [{name: float(value) for name, value in row.items() if value} for row in cells]


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Steps and texts of a `samples.jsonl`; a line that a killed run left unfinished is none. No file, no samples."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            samples.append((int(entry["step"]), str(entry["text"])))
        except (ValueError, LookupError, TypeError):
            continue
    return samples


def _line(sample: tuple[int, str]) -> str:
    return json.dumps({"step": sample[0], "text": sample[1]}) + "\n"


def _tensorboard(out_dir: Path, log: LogArgs) -> Logger:
    from lightning.fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(root_dir=out_dir / "logs", name="tensorboard")


def _wandb(out_dir: Path, log: LogArgs) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    project = log.project or os.environ.get("WANDB_PROJECT") or out_dir.name
    run = log.run or os.environ.get("WANDB_RUN_NAME")
    group = log.group or os.environ.get("WANDB_RUN_GROUP")
    return WandbLogger(project=project, name=run, group=group, save_dir=out_dir / "logs")


def _mlflow(out_dir: Path, log: LogArgs) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    folder = out_dir.resolve() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(
        experiment_name=log.project or out_dir.name,
        run_name=log.run,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}",
        artifact_location=str(folder / "mlflow"),
    )


def _litlogger(out_dir: Path, log: LogArgs) -> Logger:
    from lightning.pytorch.loggers import LitLogger

    metadata = {str(name): str(value) for name, value in (log.metadata or {}).items()}
    logger = LitLogger(
        root_dir=out_dir / "logs",
        name=log.run or out_dir.name,
        teamspace=log.teamspace,
        metadata=metadata,
        log_model=log.log_model,
        save_logs=log.save_logs,
        checkpoint_name=log.checkpoint_name,
    )
    _ = logger.experiment  # logs in now, not after the first step
    return logger


LOGGERS: dict[str, tuple[tuple[str, ...], Callable[[Path, LogArgs], Any]]] = {
    "tensorboard": (("tensorboard", "tensorboardX"), _tensorboard),
    "wandb": (("wandb",), _wandb),
    "mlflow": (("mlflow", "mlflow_skinny"), _mlflow),
    "litlogger": (("litlogger",), _litlogger),
}
"""Name → the packages of which one must be there, and what makes the logger. `csv` is not among them: it is always
written."""


def named_loggers(name: str, out_dir: Path, log: LogArgs, required: bool = True) -> list[Logger]:
    """The logger called `name`, besides the CSV file that every run writes; for `csv`, none.

    Args:
        name: `csv` or a key of `LOGGERS`.
        out_dir: Of the run; local logs go into `logs/` there.
        log: Names handed on to the logger.
        required: False: where the package is absent, say so and log to CSV alone (a command's default that nobody
            asked for).

    Raises:
        LitGPTError: Unknown, or its package is not installed.
    """
    if name == "csv":
        return []
    if name not in LOGGERS:
        raise LitGPTError(f"Unknown logger {quoted(name)}.{closest(name, ['csv', *LOGGERS])}")
    packages, make = LOGGERS[name]
    if not any(find_spec(package) for package in packages):
        absent = f"The logger {name} needs the package {packages[0]}, which is not installed"
        if required:
            raise MissingPackageError(f"{absent}: `pip install 'litgpt[log]'`, or use --logger_name csv.")
        if not is_quiet():
            print(f"{absent} (`pip install 'litgpt[log]'`): metrics go to CSV only.")
        return []
    try:
        return [make(out_dir, log)]
    except LitGPTError:
        raise
    except (Exception, SystemExit) as error:  # some log in when they are made, and end the process where they can't
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LitGPTError(f"The logger {name} can't start ({reason}); mend that, or use --logger_name csv.") from None
