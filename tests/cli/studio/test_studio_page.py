"""The studio's page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from litgpt.cli.studio.app import make_app
from litgpt.cli.studio.runs import RunFolders
from litgpt.deploy.access import Keys
from tests.browser import browser, opened  # noqa: F401
from tests.cli.studio.test_runs import write_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture
def page(browser, tmp_path) -> Iterator[Any]:  # noqa: F811
    write_run(tmp_path / "one", [3.0, 2.0, 1.0])
    page_of = make_app(RunFolders(tmp_path), Keys(["secret"]), None)
    with opened(browser, page_of) as page:
        page.wait_for_selector("#problem:visible")
        page.problems.clear()  # the 401
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("#runs tr")
        yield page


def test_runs_are_shown_as_they_go_and_compared(page, tmp_path):
    page.wait_for_selector("figure[data-chart=Loss] path.line")
    assert page.locator("figure").count() == 3  # what was logged: loss, speed, memory
    assert page.inner_text("#samples pre") == "<b>said</b>"
    log = write_run(tmp_path / HOSTILE, [5.0, 4.0])
    page.wait_for_function("() => document.querySelectorAll('#runs tr').length === 2")
    page.check(f"[aria-label='Show {HOSTILE}']")
    page.wait_for_function("() => document.querySelectorAll('figure[data-chart=Loss] path.line').length === 4")
    first = page.get_attribute("figure[data-chart=Loss] svg", "aria-label")
    assert "one 1" in first and "one validation 2" in first and f"{HOSTILE} 4" in first
    log.log_metrics({"loss": 0.25}, step=3)
    page.wait_for_function("() => document.querySelector('figure[data-chart=Loss] svg').ariaLabel.includes('0.25')")
    page.click(f"#runs button:has-text('{HOSTILE}')")
    page.wait_for_function("(name) => document.querySelector('#name').textContent === name", arg=HOSTILE)
    box = page.locator("figure[data-chart=Loss] svg").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    page.wait_for_function("() => document.querySelector('figure[data-chart=Loss] b').textContent.includes(' at 1')")
    assert page.evaluate("window.hacked") is None and not page.problems


def test_it_fits_a_phone_and_everything_has_a_name(page):
    page.wait_for_selector("figure path")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 360, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = """[...document.querySelectorAll("button, input, select, textarea, summary")].filter((one) =>
      !(one.ariaLabel || one.textContent.trim() || (one.labels && one.labels.length))).map((one) => one.outerHTML)"""
    assert page.evaluate(unnamed) == []
