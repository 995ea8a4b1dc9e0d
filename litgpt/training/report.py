"""What a run leaves to look at: the picture of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float]


def draw_loss(rows: Sequence[Row], path: Path, title: str = "") -> Path:
    """Draws training and validation loss over optimizer steps, and the learning rate, as a PNG.

    Args:
        rows: Of `metrics.csv`: `step` with `loss`, `val_loss`, `learning_rate`; any may be missing.
        path: Where the picture goes.
        title: Above it.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws into memory; needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(gridspec_kw=dict(left=0.08, right=0.9, bottom=0.11, top=0.92))
    train, val = _series(rows, "loss"), _series(rows, "val_loss")
    smooth = smoothed([loss for _, loss in train])
    axes.plot([step for step, _ in train], [loss for _, loss in train], color="#9ecae1", linewidth=0.8)
    axes.plot([step for step, _ in train], smooth, color="#2171b5", linewidth=1.6, label="training")
    axes.plot(
        *zip(*val, strict=True) if val else ([], []), color="#d94801", marker="o", markersize=4, label="validation"
    )
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    rates = _series(rows, "learning_rate")
    if rates:
        beside = axes.twinx()
        beside.plot(*zip(*rates, strict=True), color="#bdbdbd", linewidth=1, linestyle="--")
        beside.set_ylabel("learning rate (dashed)", color="#969696")
        beside.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average over a twenty-fifth of the values, so that a few are shown as they are.

    It starts at the first value's level: the weights sum to one from the start.
    """
    weight = max(0.0, 1 - 25 / max(1, len(values)))
    total, mass, result = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        result.append(total / mass)
    return result


def _series(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row and "step" in row]
