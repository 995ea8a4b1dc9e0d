"""The studio's page in a real browser."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from litgpt.cli.studio.app import make_app
from litgpt.cli.studio.processes import Processes, began
from litgpt.cli.studio.runs import RunFolders
from litgpt.deploy.access import Keys
from litgpt.errors import LitGPTError
from tests.browser import browser, opened  # noqa: F401
from tests.cli.studio.test_processes import note, sleeping
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


def test_a_recipe_is_edited_previewed_and_started(page, tmp_path, monkeypatch):
    """What the page does with the server's answers; test_processes.py has the real processes."""
    page.click("#open")
    page.wait_for_function("() => document.querySelectorAll('#recipe option').length > 5")
    page.select_option("#recipe", "finetune/smollm2-135m/lora")
    page.wait_for_function("() => document.querySelector('#text').value.includes('SmolLM2-135M-Instruct')")
    assert page.input_value("#command") == "finetune_lora"
    asked = []

    def answers(question, command, text):
        asked.append((question, command, text))
        if "wrong" in text:
            raise LitGPTError(f"the recipe: {HOSTILE} is wrong.")
        pieces = [("Question ", False), (HOSTILE, True)]
        return {"out_dir": str(tmp_path), "samples": [{"title": "sample 0", "pieces": pieces}], "summary": "1 sample"}

    monkeypatch.setattr("litgpt.cli.studio.app.ask", answers)
    page.fill("#text", "wrong: 1")
    page.click("#check")
    page.wait_for_selector("#answer.failed")
    assert page.inner_text("#answer") == f"the recipe: {HOSTILE} is wrong."
    page.fill("#text", "seed: 1")
    page.click("#preview")
    page.wait_for_selector("#previewed pre")
    assert page.locator("#previewed pre mark").all_inner_texts() == [HOSTILE]
    assert page.locator("#previewed pre").first.inner_text() == f"Question {HOSTILE}"
    assert asked == [("check", "finetune_lora", "wrong: 1"), ("preview", "finetune_lora", "seed: 1")]

    def start(self, command, text):
        process = sleeping()
        children.append(process)
        note(tmp_path / "mine", pid=process.pid, began=began(process.pid), command=command)
        return "mine"

    children: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(Processes, "start", start)
    page.click("#start")
    page.wait_for_selector("#stop:visible")
    assert page.inner_text("#name") == "mine"
    page.click("#stop")
    with children[0]:
        assert children[0].wait(10) == -signal.SIGINT
    page.wait_for_selector("#stop", state="hidden")
    page.click("#runs button:has-text('one')")
    page.wait_for_function("() => document.querySelector('#name').textContent === 'one'")
    assert page.is_hidden("#stop") and "Ctrl-C where it was started" in page.inner_text("#stopping")
    page.problems = [problem for problem in page.problems if "400" not in problem]  # the recipe that was wrong
    assert page.evaluate("window.hacked") is None and not page.problems
