"""What a run leaves to look at: a picture of its loss, and one page, `report.html`, with all there is to see."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import atomic_file
from litgpt.training.metrics.loggers import Row

POINTS = 1500
"""Of a curve on the page, at most."""
TRAINING, FAINT, VALIDATION, OTHER = "#2171b5", "#9ecae1", "#d94801", "#636363"


def draw_loss(rows: Sequence[Row], path: Path, title: str = "") -> Path:
    """Draws training and validation loss over optimizer steps, and the learning rate, as a PNG.

    Args:
        rows: Of `metrics.csv`: `step` with `loss`, `val_loss`, `learning_rate`; any may be missing.
        path: Where the picture goes.
        title: Above it.

    Returns:
        `path`.
    """
    figure = new_figure(8, 4.5)
    axes = figure.subplots(gridspec_kw=dict(left=0.08, right=0.9, bottom=0.11, top=0.92))
    _plot_loss(axes, rows)
    axes.set_title(title, parse_math=False)
    rates = _series(rows, "learning_rate")
    if rates:
        beside = axes.twinx()
        beside.plot(*zip(*rates, strict=True), color="#bdbdbd", linewidth=1, linestyle="--")
        beside.set_ylabel("learning rate (dashed)", color="#969696")
        beside.set_ylim(bottom=0)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size, in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws into memory
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _plot_loss(axes: Any, rows: Sequence[Row], points: int | None = None) -> None:
    train, val = _series(rows, "loss"), _series(rows, "val_loss")
    smooth = list(zip((step for step, _ in train), smoothed([loss for _, loss in train]), strict=True))
    _plot(axes, thinned(train, points), color=FAINT, linewidth=0.8)
    _plot(axes, thinned(smooth, points), color=TRAINING, linewidth=1.6, label="training")
    _plot(axes, val, color=VALIDATION, marker="o", markersize=4, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def _plot(axes: Any, series: Sequence[tuple[float, float]], **style: Any) -> None:
    axes.plot([x for x, _ in series], [y for _, y in series], **style)


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


def thinned(series: Sequence[tuple[float, float]], points: int | None) -> list[tuple[float, float]]:
    """At most `points` of a curve, evenly chosen, the first and the last among them."""
    if points is None or len(series) <= points:
        return list(series)
    last = len(series) - 1
    return [series[round(number * last / (points - 1))] for number in range(points)]


def _series(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row and "step" in row]


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[1])


# --------------------------------------------------------------------------------------------------------- the page


@dataclass
class Report:
    """The content of the page, as plain values and texts."""

    title: str
    summary: Sequence[tuple[str, str]]
    """What a number means, and the number."""
    rows: Sequence[Row]
    """Of `metrics.csv`, the whole run's."""
    samples: Sequence[tuple[int, str]] = ()
    """Optimizer steps, and what the model said after them."""
    kept: Sequence[tuple[str, str]] = ()
    """Folders, and what is in them."""
    settings: str = ""
    """The run's `hyperparameters.yaml`."""


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top }
td:first-child { color: #666; min-width: 8rem }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .5rem }
.curves svg { width: 100%; height: auto; background: #fff; border-radius: 4px }
.curves svg:first-child { grid-column: 1 / -1; max-width: 48rem }
pre { background: #f6f6f6; padding: .7rem; white-space: pre-wrap; font-size: 13px }
@media (max-width: 40rem) {
  body { margin: 1rem auto } td { display: block; padding: 0 } td + td { padding-bottom: .4rem }
}
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } td:first-child { color: #999 } pre { background: #262626 }
  .curves svg { filter: invert(.91) hue-rotate(180deg) }
}
"""


def write_report(report: Report, path: Path) -> Path:
    """Writes the page, a single file that asks for nothing from outside.

    Returns:
        `path`.
    """
    parts = [f"<h1>{_text(report.title)}</h1>", _table(report.summary), "<h2>Curves</h2>", curves(report.rows)]
    if report.samples:
        shown = [f"<h3>Step {step:,}</h3><pre>{_text(said)}</pre>" for step, said in report.samples]
        parts += ["<h2>What the model said</h2>", *_folded(shown)]
    if report.kept:
        parts += ["<h2>What was kept</h2>", _table(report.kept)]
    if report.settings:
        parts += ["<h2>Settings</h2>", f"<pre>{_text(report.settings)}</pre>"]
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(report.title)}</title><style>{STYLE}</style></head><body>"
    )
    with atomic_file(path) as temporary:
        temporary.write_text(head + "\n".join(parts) + "</body></html>\n", encoding="utf-8", errors="replace")
    return path


def _folded(shown: list[str], open_ones: int = 3) -> list[str]:
    """The last ones to see at once, the earlier ones on a click."""
    earlier, last = shown[:-open_ones], shown[-open_ones:]
    folded = [f"<details><summary>{len(earlier)} earlier ones</summary>{''.join(earlier)}</details>"] if earlier else []
    return [*folded, *last]


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{lines}</table>"


def _text(text: str) -> str:
    """Nothing in it is markup; control characters, which HTML has no place for, are shown as such."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", text))


PANELS = (
    ("reward", "reward"),
    ("val_reward", "reward, validation"),
    ("answer_tokens", "tokens of an answer"),
    ("truncated", "share of answers cut off"),
    ("drift", "drift of log-probabilities between engine and training"),
    ("reference_kl", "divergence from the reference"),
    ("divergence", "divergence from the teacher"),
    ("val_divergence", "divergence from the teacher, validation"),
    ("accuracy", "accuracy of preferences"),
    ("val_accuracy", "accuracy of preferences, validation"),
    ("margin", "margin of rewards"),
    ("val_margin", "margin of rewards, validation"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens per second"),
    ("peak_memory_gb", "peak memory (GB)"),
)
"""Columns of `metrics.csv` with a curve of their own, besides the loss and what tasks found (`TASK/METRIC`)."""


def curves(rows: Sequence[Row]) -> str:
    """The curves of a run, the loss and what else was logged: one SVG element each, so that they stand below each other
    on a narrow screen, with letters that can be read."""
    of_tasks = dict.fromkeys(name for row in rows for name in row if "/" in name)
    figure = new_figure(6.4, 3.6)
    _plot_loss(_axes_of(figure, left=0.6, bottom=0.5, top=0.1), rows, POINTS)
    drawings = [_as_svg(figure, "loss")]
    for name, label in [*PANELS, *((name, name) for name in of_tasks)]:
        series = _series(rows, name)
        values = [value for _, value in filter(_finite, series)]
        if not values:
            continue
        figure = new_figure(4.6, 2.3)
        axes = _axes_of(figure, left=0.8, bottom=0.25, top=0.28)
        _plot(axes, thinned(series, POINTS), color=OTHER, linewidth=1.1)
        axes.set_title(label, fontsize=10, loc="left", parse_math=False)
        axes.tick_params(labelsize=9)
        axes.set_ylim(min(0.0, 1.08 * min(values)), max(1e-12, 1.08 * max(values)))
        axes.grid(alpha=0.3)
        drawings.append(_as_svg(figure, name))
    return f'<div class="curves">{"".join(drawings)}</div>'


def _axes_of(figure: Any, left: float, bottom: float, top: float) -> Any:
    """Axes that leave these margins, in inches; a layout that looks for its own takes twice as long to draw."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + 0.1) / width, 1 - (bottom + top) / height))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.7g}")  # whole numbers: a power of ten apart would need room above
    return axes


def _as_svg(figure: Any, name: str) -> str:
    """A figure as an element of a page; `name` keeps its ids apart from those of others there."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration and the address of its document type
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
