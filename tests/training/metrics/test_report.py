"""The picture of the loss, and the page with all there is to see."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from xml.dom import minidom

import pytest

from litgpt.training.metrics.report import POINTS, Report, curves, draw_loss, smoothed, thinned, write_report

ROWS = [
    {"step": 1.0, "loss": 4.0, "learning_rate": 1e-4},
    {"step": 2.0, "loss": 3.5, "learning_rate": 1e-3},
    {"step": 2.0, "val_loss": 3.6},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], ROWS[2:], []], ids=["both", "training", "validation", "nothing"])
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path, rows):
    path = draw_loss(rows, tmp_path / "new" / "loss.png", title="a run")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([3.0, 1.0]) == [3.0, 1.0]  # a few are shown as they are
    many = smoothed([3.0] + [1.0] * 99)
    assert many[0] == 3.0 and 1.0 < many[1] < 3.0 and many[-1] == pytest.approx(1.0, abs=0.01)


def test_a_title_is_no_formula(tmp_path):
    assert draw_loss(ROWS, tmp_path / "loss.png", title="a $run_1 of $\\frac").is_file()


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    line = [(float(step), 0.0) for step in range(10_000)]
    kept = thinned(line, POINTS)
    assert len(kept) == POINTS and kept[0] == line[0] and kept[-1] == line[-1]
    assert thinned(line[:5], POINTS) == line[:5]


FULL_ROWS = [
    {"step": float(step), "loss": 4.0 / step, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 1e4}
    for step in range(1, 9)
]


@pytest.mark.parametrize(
    "rows",
    [FULL_ROWS, ROWS, [], [{"step": 1.0, "loss": float("nan"), "grad_norm": float("nan")}]],
    ids=["all", "few", "nothing", "not a number"],
)
def test_curves_are_drawings_that_any_browser_reads(rows):
    drawing = minidom.parseString(curves(rows)).documentElement
    drawings = drawing.getElementsByTagName("svg")
    assert len(drawings) == (4 if rows == FULL_ROWS else 2 if rows == ROWS else 1)
    ids = [node.getAttribute("id") for node in drawing.getElementsByTagName("clipPath")]
    assert len(set(ids)) == len(ids)
    texts = {node.firstChild.data.strip() for node in drawing.getElementsByTagName("text")}
    assert ("gradient norm" in texts) == (rows == FULL_ROWS)


HOSTILE = "<script>alert('x')</script>&\x00\x1b[31m"


class Tags(HTMLParser):
    """What is in a page: its elements, what they point to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        pointing = ("href", "src", "srcset", "xlink:href", "data", "action", "poster")
        self.addresses += [value or "" for name, value in attrs if name in pointing]

    def handle_data(self, data):
        self.words += data


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_is_as_wide_as_its_screen_and_can_be_read(width, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    long = "x" * 500
    summary = [("Machine", f"a-host, Linux, {long}"), ("Commit", "0" * 40)]
    report = Report(title=f"a run {long}", summary=summary, rows=FULL_ROWS, kept=[(long, long)], settings=f"a: {long}")
    page_file = write_report(report, tmp_path / "report.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800}, is_mobile=width < 500)
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        heights = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
        assert min(heights) >= 7  # pixels of CSS
        browser.close()


def test_a_page_shows_all_and_asks_for_nothing_from_outside(tmp_path):
    report = Report(
        title=HOSTILE,
        summary=[(HOSTILE, HOSTILE)],
        rows=FULL_ROWS,
        samples=[(step, f"{HOSTILE} said after {step}") for step in range(1, 6)],
        kept=[(f"step-{HOSTILE}", "1 GB")],
        settings=f"train:\n  max_steps: 9\nname: {HOSTILE}",
    )
    text = write_report(report, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert "script" not in page.tags and "\x00" not in text and "\x1b" not in text
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert {"svg", "title", "table", "details"} <= page.tags
    assert all(f"said after {step}" in page.words for step in range(1, 6))
    assert "max_steps: 9" in page.words and "<script>alert" in page.words
