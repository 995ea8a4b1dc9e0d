"""What an evaluation found: as lm-eval writes it down, as a table and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import atomic_file
from litgpt.training.metrics.report import new_figure

LOWER_IS_BETTER = frozenset("loss perplexity word_perplexity byte_perplexity bits_per_byte".split())
COUNTS = frozenset("n_tokens n_bytes n_words".split())


def share(hits: Sequence[float], name: str) -> dict[str, float]:
    """A mean and its standard error, named as lm-eval names them."""
    n, mean = len(hits), sum(hits) / len(hits)
    variance = sum((hit - mean) ** 2 for hit in hits) / (n - 1) if n > 1 else math.nan
    return {f"{name},none": mean, f"{name}_stderr,none": math.sqrt(variance / n) if n > 1 else math.nan}


def metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """Task, metric, filter, value and standard error of all that was measured."""
    for task, found in results["results"].items():
        for key, value in found.items():
            name, _, kind = key.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not kind or not number or name.endswith("_stderr") or name in COUNTS:
                continue
            error = found.get(f"{name}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            yield found.get("alias") or task, name, kind, value, error if known else None


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = [("Task", "n", "Metric", "", "Value", "±")]
    counts = results.get("n-samples", {})
    names = {found.get("alias") or task: task for task, found in results["results"].items()}
    seen = ""
    for task, name, kind, value, error in metrics(results):
        count = counts.get(names[task], {}).get("effective", "")
        arrow = "↓" if name in LOWER_IS_BETTER else "↑"
        shown = name if kind == "none" else f"{name} ({kind})"
        head = ("", "") if seen == task else (task, str(count))
        seen = task
        rows.append((*head, shown, arrow, f"{value:.4f}", "" if error is None else f"{error:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join((lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]))


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results as JSON; what is no number, such as the error of a single sample, is null."""
    text = json.dumps(_plain(results), indent=2, ensure_ascii=False, default=str)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="replace")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def draw(results: Mapping[str, Any], path: Path, title: str) -> bool:
    """Draws what was measured as bars, shares above and losses below; says whether there was anything to draw."""
    found = [entry for entry in metrics(results) if math.isfinite(entry[3])]
    panels = [[e for e in found if e[1] not in LOWER_IS_BETTER], [e for e in found if e[1] in LOWER_IS_BETTER]]
    panels = [panel for panel in panels if panel]
    if not panels:
        return False
    figure = new_figure(8, 1.2 + sum(0.5 + 0.32 * len(panel) for panel in panels))
    heights = [len(panel) + 1 for panel in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, panel in zip(axes, panels, strict=True):
        labels = [f"{task}\n{name}" if kind == "none" else f"{task}\n{name}, {kind}" for task, name, kind, *_ in panel]
        values = [value for *_, value, _ in panel]
        errors = [error or 0.0 for *_, error in panel]
        bars = place.barh(range(len(panel)), values, xerr=errors, color="#2171b5", ecolor="#08306b", height=0.6)
        place.bar_label(bars, [f"{value:.4g}" for value in values], padding=4, fontsize=8)
        place.set_yticks(range(len(panel)), labels, fontsize=7, parse_math=False)
        place.invert_yaxis()
        place.margins(x=0.15)
        place.set_xlabel("lower is better" if panel[0][1] in LOWER_IS_BETTER else "higher is better", fontsize=8)
        place.grid(axis="x", alpha=0.3)
    axes[0].set_title(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True
