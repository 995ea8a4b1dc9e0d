"""The chat page in a real browser, over a server that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from litgpt.deploy.pages import read_page
from litgpt.deploy.service import Service
from litgpt.engine.inference_model import InferenceModel
from tests.browser import browser, opened  # noqa: F401
from tests.deploy.served import alone, make_service, running
from tests.generate.folder import make_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAID = "() => chat.messages.map((message) => message.content)"
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> [x](javascript:window.hacked=3)"
MARKDOWN = """# Title

Some **bold** and `code`.

- one
- two

```python
print('<b>')
```

| a | b |
|---|---|
| 1 | 2 |"""


@dataclass
class Script:
    """What the server says, and what it was asked."""

    answers: list[str] = field(default_factory=list)
    pause: float = 0.0
    """Seconds between two pieces."""
    thought: str = ""
    """What the model thinks before it answers."""
    breaks: bool = False
    """Whether streams end before their end."""
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    """Clients that went away before the end."""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        def page(request: Request) -> Response:
            return read_page("chat").answer(request)

        def refused(request: Request) -> bool:
            return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"

        @app.get("/v1/models")
        def models(request: Request) -> Any:
            if refused(request):
                return JSONResponse({"error": {"message": "The key is missing."}}, 401)
            usual = {"max_model_len": 99, "sampling": {"temperature": 0.3, "top_p": 1.0, "top_k": None}}
            return {"data": [{"id": name, "display_name": "Llama", **usual} for name in ("base", "tuned")]}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            if refused(request):
                return JSONResponse({"error": {"message": "The key is missing."}}, 401)
            self.asked.append(await request.json())
            if not self.answers:
                return JSONResponse({"error": {"message": "All slots are taken."}}, 429)
            return StreamingResponse(self.stream(self.answers.pop(0)), media_type="text/event-stream")

        return app

    async def stream(self, answer: str) -> AsyncIterator[str]:
        try:
            if self.thought:
                yield self.event(choices=[{"delta": {"reasoning_content": self.thought}, "finish_reason": None}])
            for at in range(0, len(answer), 7):
                yield self.event(choices=[{"delta": {"content": answer[at : at + 7]}, "finish_reason": None}])
                await asyncio.sleep(self.pause)
            if self.breaks:
                return
            yield self.event(choices=[{"delta": {}, "finish_reason": "stop"}])
            yield self.event(choices=[], usage={"completion_tokens": 42})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left += 1
            raise

    @staticmethod
    def event(**content: Any) -> str:
        return f"data: {json.dumps(content)}\n\n"


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def page(browser, script) -> Iterator[Any]:  # noqa: F811
    with opened(browser, script.app()) as page:
        page.wait_for_selector("#model option", state="attached")
        yield page


@pytest.fixture
def real(browser, tmp_path) -> Iterator[tuple[Any, InferenceModel, Service]]:  # noqa: F811
    """The page as the real server with a key shows it, its settings open; the model behind it, and the service."""
    inference_model = InferenceModel.load(make_folder(tmp_path / "tiny", block_size=40_000), "cpu", "32-true")
    service = make_service(inference_model, slots=1, keys=["secret"])
    with running(service) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".notice")  # it asks for the key
        page.fill("#key", "secret")
        page.fill("#temperature", "0")
        page.press("#temperature", "Tab")
        page.wait_for_selector("#model option", state="attached")
        yield page, inference_model, service
        page.close()


def test_the_real_server_answers_and_answers_again(real):
    page, inference_model, _ = real
    page.fill("#max_tokens", "12")
    page.press("#max_tokens", "Tab")
    page.keyboard.press("Escape")
    expected = ["What food?", alone(inference_model, "What food?", 12)]
    ask(page, "What food?")
    finished(page)
    assert page.evaluate(SAID) == expected
    page.click("text=Regenerate")
    finished(page)
    assert page.evaluate(SAID) == expected


def test_the_real_server_streams_until_it_is_stopped(real):
    page, inference_model, service = real
    page.keyboard.press("Escape")
    ask(page, "What food?")
    page.wait_for_function("() => document.querySelector('article.writing .text')?.innerText.length > 100")
    page.click("#stop")
    finished(page)
    assert "stopped" in page.inner_text(".note")
    _, answer = page.evaluate(SAID)
    assert len(answer) > 100 and alone(inference_model, "What food?", 3 * len(answer)).startswith(answer)
    deadline = time.monotonic() + 5
    while service.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.in_flight == 0  # its one slot is free
    page.click("text=Regenerate")
    page.wait_for_selector("article.writing .text:not(:empty)")
    page.click("#stop")
    finished(page)


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def finished(page: Any) -> None:
    page.wait_for_selector("#send:visible")
    page.wait_for_selector("article.writing", state="detached")


def texts(page: Any) -> list[str]:
    return page.locator("article > .text").all_inner_texts()


def test_an_answer_streams_in(page, script):
    script.answers, script.pause = ["Llamas eat grass and hay, all day long."], 0.2
    ask(page, "What do llamas eat?")
    page.wait_for_function("() => document.querySelector('article.writing .text')?.textContent.includes('Llamas')")
    assert "all day long." not in texts(page)[1]
    finished(page)
    assert texts(page) == ["What do llamas eat?", "Llamas eat grass and hay, all day long."]
    assert "42 tokens · " in page.inner_text(".note") and "tokens/s" in page.inner_text(".note")
    assert script.asked[0]["messages"] == [{"role": "user", "content": "What do llamas eat?"}]
    assert not page.problems


def test_escape_stops_the_answer_and_keeps_what_came(page, script):
    script.answers, script.pause = ["word " * 400], 0.02
    ask(page, "Go on and on")
    page.wait_for_function("() => document.querySelector('article.writing .text')?.textContent.length > 50")
    page.keyboard.press("Escape")
    finished(page)
    assert 50 < len(texts(page)[1]) < 1500
    assert "stopped" in page.inner_text(".note")
    page.wait_for_timeout(300)
    assert script.left == 1


def test_regenerate_asks_again_without_the_old_answer(page, script):
    script.answers = ["first", "second"]
    ask(page, "Hello")
    finished(page)
    page.click("text=Regenerate")
    page.wait_for_function("() => document.querySelector('article.assistant .text').textContent === 'second'")
    finished(page)
    assert script.asked[0]["messages"] == script.asked[1]["messages"]
    assert texts(page) == ["Hello", "second"]
    page.reload()
    page.wait_for_selector(".versions")
    assert page.inner_text(".versions") == "2/2"
    page.click("[aria-label='The version before']")
    assert texts(page) == ["Hello", "first"] and page.inner_text(".versions") == "1/2"
    page.click("[aria-label='The next version']")
    assert texts(page) == ["Hello", "second"]


def test_an_answer_that_fails_leaves_the_one_it_was_to_replace(page, script):
    script.answers = ["first"]
    ask(page, "Hello")
    finished(page)
    page.click("text=Regenerate")
    page.wait_for_selector(".notice:visible")
    assert texts(page) == ["Hello", "first"] and page.locator(".versions").count() == 0


@pytest.mark.parametrize("begun", [True, False])
def test_a_reload_keeps_what_has_come_and_what_is_being_written(page, script, begun):
    script.answers, script.pause = ["word " * 400], 0.02 if begun else 30
    script.thought = "" if begun else " "
    ask(page, "Go on")
    if begun:
        page.wait_for_function("() => document.querySelector('article.writing .text')?.textContent.length > 50")
    page.fill("#prompt", "not sent yet")
    page.reload()
    page.wait_for_selector("article.user")
    assert texts(page)[0] == "Go on" and page.input_value("#prompt") == "not sent yet"
    if begun:
        assert len(texts(page)[1]) > 50
    page.click("#toggle")
    page.type("#system", "Be brief.")  # without leaving the field
    page.reload()
    assert page.input_value("#system") == "Be brief."
    if page.is_hidden("#settings"):
        page.click("#toggle")
    page.click("#reset")
    page.click("text=Undo the reset")
    assert page.input_value("#system") == "Be brief."


def test_copy_works_without_a_clipboard(page, script):
    script.answers = ["to be copied"]
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate("addEventListener('copy', () => { window.copied = document.activeElement.value; })")
    ask(page, "Hello")
    finished(page)
    page.click("article.assistant >> text=Copy")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("window.copied") == "to be copied"
    assert page.locator("textarea.unseen").count() == 0


def test_a_full_browser_is_told_and_no_chat_is_dropped(page, script):
    script.answers = ["one", "two"]
    ask(page, "first")
    finished(page)
    page.evaluate("localStorage.setItem('filler', 'x'.repeat(5 * 1024 * 1024 - 2000))")
    page.click("#new")
    ask(page, "second " * 400)
    finished(page)
    assert page.is_visible("#full")
    assert [one["messages"][0]["content"] for one in page.evaluate("chats()")] == ["first"]


def test_edit_goes_on_from_the_changed_message(page, script):
    script.answers = ["one", "two", "three"]
    for text in ("first", "again"):
        ask(page, text)
        finished(page)
    page.locator("article.user .edit").first.click()
    page.fill("article textarea", "other")
    page.press("article textarea", "Enter")
    page.wait_for_function("() => document.querySelectorAll('article').length === 2")
    finished(page)
    assert texts(page) == ["other", "three"]
    page.click("article.user [aria-label='The version before']")
    assert texts(page) == ["first", "one", "again", "two"]
    assert script.asked[2]["messages"] == [{"role": "user", "content": "other"}]


def test_markup_in_an_answer_is_shown_and_not_run(page, script):
    script.answers = [HOSTILE]
    ask(page, HOSTILE)
    finished(page)
    page.wait_for_timeout(200)
    assert texts(page) == [HOSTILE, HOSTILE]
    assert page.evaluate("window.hacked") is None
    assert page.locator("article img, article script, article a").count() == 0
    assert not page.problems


def test_even_injected_markup_could_not_run(page):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked = 1'>`)")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_markdown_becomes_elements(page, script):
    script.answers = [MARKDOWN]
    ask(page, "Show off")
    finished(page)
    answer = page.locator("article.assistant > .text")
    assert [answer.locator(tag).count() for tag in ("h3", "strong", "li", "table", "td", "pre")] == [1, 1, 2, 1, 2, 1]
    assert answer.locator("pre > code").inner_text() == "print('<b>')"
    assert answer.locator(".code-head span").inner_text() == "python"


TREE = """(text) => {
  const tree = (node) => {
    node.normalize();
    if (node.nodeType === 3) return node.data;
    const name = node.tagName.toLowerCase() + (node.className ? "." + node.className : "");
    return [name, ...[...node.childNodes].map(tree)];
  };
  return elements(text).map(tree);
}"""
TABLE = [
    "table",
    ["thead", ["tr", ["th", "a"], ["th.right", "b"]]],
    ["tbody", ["tr", ["td", "1"], ["td.right", "2"]]],
]


LINES = [
    "table",
    ["thead", ["tr", ["th", "a"], ["th", "b"]]],
    ["tbody", ["tr", ["td", "1", ["br"], "2"], ["td", ["code", "x"]]]],
]
MARKS = [
    ("a\nb\n\nc", [["p", "a", ["br"], "b"], ["p", "c"]]),
    ("**a *b* c** _d_ e_f_g", [["p", ["strong", "a ", ["em", "b"], " c"], " ", ["em", "d"], " e_f_g"]]),
    ("~~a~~ 2 * 3 * 4 and ** no **", [["p", ["del", "a"], " 2 * 3 * 4 and ** no **"]]),
    (r"\*no\* \# &lt;b> &amp;lt;", [["p", "*no* # <b> &lt;"]]),
    ("`` a`b `` and `<i>`", [["p", ["code", "a`b"], " and ", ["code", "<i>"]]]),
    ("1. a\n   - b\n   - c\n2. d", [["ol", ["li", "a", ["ul", ["li", "b"], ["li", "c"]]], ["li", "d"]]]),
    ("- a\n\n  b\n- c", [["ul", ["li", ["p", "a"], ["p", "b"]], ["li", ["p", "c"]]]]),
    ("It was in\n1990. Then", [["p", "It was in", ["br"], "1990. Then"]]),
    ("a | b\n---|--:\n1 | 2", [["div.table", TABLE]]),
    ("a\n---", [["p", "a"], ["hr"]]),
    ("> a\n> - b", [["blockquote", ["p", "a"], ["ul", ["li", "b"]]]]),
    ("[x](javascript:alert) [y](data:text/html,z)", [["p", "[x](javascript:alert) [y](data:text/html,z)"]]),
    ("(see https://a.example/b_c.)", [["p", "(see ", ["a", "https://a.example/b_c"], ".)"]]),
    ("- [x] a\n- [ ] b", [["ul", ["li.task", ["input"], " a"], ["li.task", ["input"], " b"]]]),
    ("![a](https://a.example/b.png)", [["p", ["a", "a"]]]),
    ("a | b\n---|---\n1<br>2 | `x`", [["div.table", LINES]]),
]


def test_what_markdown_becomes(page):
    assert [page.evaluate(TREE, text) for text, _ in MARKS] == [tree for _, tree in MARKS]


def test_code_in_a_list_is_code(page):
    found = page.evaluate(TREE, "1. Run\n   ```text\n   ls\n     -l\n   ```\n2. Done")
    code = ["div.code", ["div.code-head", ["span", "text"], ["button", "Copy"]], ["pre", ["code", "ls\n  -l"]]]
    assert found == [["ol", ["li", "Run", code], ["li", "Done"]]]


@pytest.mark.parametrize("aloud", [True, False])
def test_reasoning_is_folded_away_once_the_answer_comes(page, script, aloud):
    script.answers = ["<think>\nHm, **grass**.\n</think>\n\nGrass." if aloud else "Grass."]
    script.thought = "" if aloud else "Hm, **grass**."
    ask(page, "What do llamas eat?")
    finished(page)
    folded = page.locator("article.assistant details")
    assert folded.locator("strong").text_content() == "grass"
    assert folded.locator("summary").inner_text() == "Reasoning" and folded.get_attribute("open") is None
    assert page.locator("article.assistant .text > p").inner_text() == "Grass."


PIECES = [
    "**a ",
    "`a",
    "- a\n",
    "> ",
    "[a](",
    "*a _b ",
    "|a",
    "    - a\n",
    "\\",
    "_a",
    "$a",
    "\\(",
    "$$",
    "![",
    "<a ",
    "a|b\n",
    "&a;",
]


def test_no_text_takes_long_to_show(page):
    took = """(text) => { const t = performance.now(); elements(text); return performance.now() - t; }"""
    slow = {
        piece: ms for piece in PIECES if (ms := page.evaluate(took, piece * (30_000 // len(piece)))) > 20_000
    }  # what has no bound takes minutes, on a busy machine too
    assert not slow


SAMPLES = [
    HOSTILE,
    "<svg onload=window.hacked=4><a href='javascript:1'>x</a>",
    "[x](JaVaScRiPt:window.hacked=5) [x](&#106;avascript:1) [x](java\tscript:1) <javascript:1> [x](vbscript:1)",
    "[x]: javascript:window.hacked=6\n\n[x] [y][x]",
    "![x](javascript:1) ![x](data:text/html;base64,eA==) ![<img src=x onerror=1>](https://a.example/)",
    '[<img src=x onerror=window.hacked=7>](https://a.example/"onmouseover=1)',
    "```<img/src=x/onerror=1>\n<img src=x onerror=window.hacked=8>\n```",
    "```html\n</code><script>window.hacked=9</script>\n```",
    "$\\href{javascript:window.hacked=10}{x}$ $\\htmlData{onclick=1}{x}$",
    "$\\includegraphics{x}$ $\\text{<img src=x onerror=1>}$",
    "| <img src=x onerror=1> |\n|---|\n| <iframe src=javascript:1> |",
    "- [x] <input autofocus onfocus=window.hacked=11>\n> <style>*{display:none}</style>",
    "<!-- --><base href=//a.example> <form action=//a.example> <math><mtext><img src=x onerror=1>",
    "&lt;img src=x onerror=window.hacked=12&gt; &#60;script&#62;",
]
ATTRIBUTES = {
    "class",
    "href",
    "target",
    "rel",
    "start",
    "type",
    "disabled",
    "checked",
    "tabindex",
    "title",
    "aria-label",
}


def test_nothing_a_model_writes_becomes_markup(page):
    found = page.evaluate(
        """(samples) => samples.flatMap((text) => {
          const box = make("div", {}, ...elements(text));
          document.body.append(box);
          return [...box.querySelectorAll("*")].filter((one) => !one.closest("math")).map((one) =>
            [one.localName, one.getAttributeNames(), one.getAttribute("href")]);
        })""",
        SAMPLES,
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert not {tag for tag, _, _ in found} & set("script img iframe svg form style base math object".split())
    assert {name for _, names, _ in found for name in names} <= ATTRIBUTES
    assert {address.partition(":")[0] for _, _, address in found if address is not None} == {"https"}
    inside = page.evaluate(
        "[...document.querySelectorAll('math, math *')].map((one) => [one.localName, one.getAttributeNames()])"
    )
    assert not {tag for tag, _ in inside} & {"a", "img", "script", "mtext img"}
    assert not {name for _, names in inside for name in names if name.startswith("on") or name in ("href", "src")}


def test_colours_change_no_character_of_code(page):
    """In every language that is known."""
    changed = page.evaluate(
        """(code) => hljs.listLanguages().filter((name) =>
          make("code", {}, ...colored(name, code)).textContent !== code)""",
        "<b> &amp; \"x\" '</script>' // /* # -- ${1} \\u0041 \t\r\n def f(x): return {a: 1}; <?php $x ?> @a %b \u2028",
    )
    assert changed == []
    assert page.evaluate("codeBlock('python', 'def f(): return 1').querySelectorAll('.hljs-keyword').length") == 2


FORMULAS = {
    "Prices: $5 and $10, $5/$6, US$3": (0, 0),
    r"So $x^2$, \(y\) and $$z$$.": (3, 1),
    "$$\na\n- b\n\n= c\n$$": (1, 1),
    "\\[\n\\begin{cases} a \\\\ b_1 * c_2 * d \\end{cases}\n\\]": (1, 1),
    r"`$x$` and \$y\$ and $\frac{$": (0, 0),
    "- $a_1 * b$ and *c*\n- $d$": (2, 0),
}


def test_what_is_a_formula(page):
    count = """(text) => {
      const box = make("div", {}, ...elements(text));
      return ["math", "math[display=block]"].map((one) => box.querySelectorAll(one).length);
    }"""
    assert {text: tuple(page.evaluate(count, text)) for text in FORMULAS} == FORMULAS
    assert page.evaluate("math({ text: 'x^2', raw: '$x^2$' }).querySelector('msup mi').textContent") == "x"
    assert page.evaluate("math({ text: 'a{', raw: '$a{$' }).innerText") == "$a{$"


def test_what_is_shown_already_stays_while_more_comes(page):
    same = """() => {
      const box = make("div");
      render(box, { content: "One.\\n\\nTwo.\\n\\nThr" });
      const [first, second] = box.children;
      render(box, { content: "One.\\n\\nTwo.\\n\\nThree **now**." });
      return [box.children[0] === first, box.children[1] === second, box.textContent];
    }"""
    assert page.evaluate(same) == [True, True, "One.Two.Three now."]


def test_settings_reach_the_server_and_stay(page, script):
    script.answers = ["yes"]
    page.click("#toggle")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0",
        "top_p": "1",
        "max_tokens": "9",
        "seed": "4",
    }.items():
        page.fill(f"#{name}", value)
    page.select_option("#model", "tuned")
    page.press("#seed", "Escape")
    assert page.is_hidden("#settings")
    ask(page, "Hello")
    finished(page)
    asked = script.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [asked[name] for name in ("model", "temperature", "max_tokens", "seed", "top_p")] == ["tuned", 0, 9, 4, 1]
    page.reload()
    assert page.input_value("#system") == "Be brief."
    page.click("#toggle")
    page.click("#reset")
    page.reload()
    assert [page.input_value(f"#{name}") for name in ("system", "temperature", "seed")] == ["", "", ""]


def test_what_the_server_does_by_itself_is_told_and_not_sent(page, script):
    script.answers = ["yes"]
    assert [page.get_attribute(f"#{name}", "placeholder") for name in ("temperature", "top_k")] == ["0.3", "all"]
    ask(page, "Hello")
    finished(page)
    assert set(script.asked[0]) == {"model", "stream", "stream_options", "messages"}


def test_earlier_chats_are_kept_and_opened_and_deleted(page, script):
    script.answers = ["one", "two", "three"]
    ask(page, "first")
    finished(page)
    page.click("#new")
    assert texts(page) == []
    ask(page, "second")
    finished(page)
    page.reload()
    page.wait_for_selector("article.assistant")
    assert texts(page) == ["second", "two"]
    page.click("#list")
    rows = page.locator("#chats .row")
    assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["second", "first"]
    page.click("#chats .row >> text=first")
    assert texts(page) == ["first", "one"]
    ask(page, "on")
    finished(page)
    assert [message["content"] for message in script.asked[2]["messages"]] == ["first", "one", "on"]
    page.click("[aria-label='Delete second']")
    assert rows.count() == 1
    page.click("text=Delete all")
    assert rows.count() == 0 and page.evaluate("localStorage.getItem('chat.list')") == "[]"
    page.reload()
    page.click("#list")
    page.click("text=Undo: 2 deleted")
    assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["first", "second"]
    page.click("#chats .row >> text=second")
    assert texts(page) == ["second", "two"]
    assert not page.problems


def test_a_new_chat_ends_the_answer_under_way(page, script):
    script.answers, script.pause = ["word " * 400, "fresh"], 0.02
    ask(page, "Go on")
    page.wait_for_function("() => document.querySelector('article.writing .text')?.textContent.length > 50")
    page.click("#new")
    finished(page)
    assert texts(page) == []
    ask(page, "Hello")
    finished(page)
    assert texts(page) == ["Hello", "fresh"]
    assert [message["content"] for message in script.asked[1]["messages"]] == ["Hello"]


def test_an_answer_that_breaks_off_is_told(page, script):
    script.answers, script.breaks = ["half an answer"], True
    ask(page, "Hello")
    page.wait_for_selector(".notice")
    assert "broke off" in page.inner_text(".notice > span")
    assert texts(page) == ["Hello", "half an answer"]


def test_a_failure_is_told_and_the_message_kept(page, script):
    ask(page, "Hello")
    page.wait_for_selector(".notice")
    assert page.inner_text(".notice > span") == "All slots are taken. (429)"
    script.answers = ["now"]
    page.click("text=Try again")
    page.wait_for_selector("article.assistant")
    finished(page)
    assert texts(page) == ["Hello", "now"]


def test_a_server_with_keys_asks_for_one(page, script):
    script.key, script.answers = "secret", ["hello"]
    ask(page, "Hello")
    page.wait_for_selector(".notice")
    assert page.is_visible("#key")
    page.fill("#key", "secret")
    page.press("#key", "Tab")
    page.keyboard.press("Escape")
    ask(page, "Hello")
    finished(page)
    assert texts(page)[-1] == "hello"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_screens_in_light_and_dark(page, script, scheme):
    script.answers = [MARKDOWN + "\n\n" + "x" * 300]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "y" * 300)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    places = {name: page.locator(name).bounding_box() for name in ("header", "main", "footer", "#prompt", "#send")}
    assert all(place["width"] == 360 and place["x"] == 0 for place in list(places.values())[:3])
    assert places["main"]["height"] > 450 and places["footer"]["y"] + places["footer"]["height"] == 640
    assert places["#prompt"]["width"] > 250 and places["#send"]["x"] + places["#send"]["width"] < 360
    page.click("#toggle")
    assert page.locator("#settings").bounding_box()["width"] == 360
    page.keyboard.press("Escape")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_on_a_wide_screen_each_part_has_its_place(page, script):
    script.answers = [MARKDOWN]
    page.set_viewport_size({"width": 1200, "height": 800})
    ask(page, "Show off")
    finished(page)
    for name in ("#list", "#toggle"):
        page.click(name)
    chats, main, settings, footer = (
        page.locator(name).bounding_box() for name in ("#chats", "main", "#settings", "footer")
    )
    assert chats["x"] == 0 and chats["x"] + chats["width"] == main["x"] == footer["x"]
    assert main["x"] + main["width"] == settings["x"] and settings["x"] + settings["width"] == 1200
    assert main["y"] + main["height"] == footer["y"] and footer["y"] + footer["height"] == 800
    assert chats["y"] + chats["height"] == settings["y"] + settings["height"] == 800
    for name in ("#list", "#toggle"):
        page.click(name)
    assert page.locator("main").bounding_box()["width"] == page.locator("footer").bounding_box()["width"] == 1200


def test_light_and_dark_can_be_chosen_and_stay(page):
    page.emulate_media(color_scheme="light")
    dark = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(dark)
    page.click("#theme")
    assert page.evaluate(dark) != before
    page.reload()
    assert page.evaluate(dark) != before


def test_the_keyboard_reaches_everything(page, script):
    script.answers = ["one", "two"]
    page.keyboard.type("no click")  # the box has the focus from the start
    page.keyboard.press("Enter")
    finished(page)
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("article textarea")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('article.assistant .text')?.textContent === 'two'")
    finished(page)
    assert script.asked[1]["messages"][0]["content"] == "no click!"


def test_all_branches_go_through_an_export_and_come_back(page, script, tmp_path):
    script.answers = ["one", "two", "uno", "due", "three"]
    for text in ("first", "again"):
        ask(page, text)
        finished(page)
    page.locator("article.assistant >> text=Regenerate").first.click()  # in the middle: what follows is a branch
    finished(page)
    assert texts(page) == ["first", "uno"]
    ask(page, "poi")
    finished(page)
    page.locator("article.user .edit").first.click()
    page.fill("article textarea", "other")
    page.press("article textarea", "Enter")
    finished(page)
    assert texts(page) == ["other", "three"]
    page.click("#list")
    with page.expect_download() as downloaded:
        page.click("text=Export all")
    exported, before = downloaded.value.path().read_bytes(), page.evaluate("chats()")
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.reload()
    assert page.evaluate("chats()") == []
    page.click("#list")
    page.set_input_files("#file", {"name": "chats.json", "mimeType": "application/json", "buffer": exported})
    page.click("#chats .row >> text=other")
    assert page.evaluate("chats()") == before
    page.click("article.user [aria-label='The version before']")
    assert texts(page) == ["first", "uno", "poi", "due"]
    page.click("article.assistant [aria-label='The version before']")
    assert texts(page) == ["first", "one", "again", "two"]
    page.set_input_files("#file", {"name": "chats.json", "mimeType": "application/json", "buffer": exported})
    page.wait_for_function("() => chats().length === 2")  # what was changed meanwhile stays, beside what was exported
    assert not page.problems


def test_what_is_no_export_is_refused_in_a_sentence(page):
    chat = {"id": "a", "messages": [{"role": "user", "content": "x"}]}
    deep = '{"role": "user", "content": "x", "older": [[' * 600 + "1" + "]]}" * 600
    wrong = {
        "{": "it is no JSON",
        "[]": "it holds no chats that this page has written",
        json.dumps({"format": "litgpt chats 1", "chats": [chat, {"id": 1}]}): "a chat in it has no id",
        json.dumps({"format": "litgpt chats 1", "chats": [{**chat, "messages": []}]}): "a chat in it has no messages",
        json.dumps(
            {"format": "litgpt chats 1", "chats": [{**chat, "messages": [{"role": "root"}]}]}
        ): "no role or no text",
        json.dumps({"format": "litgpt chats 1", "chats": [{**chat, "messages": [2]}]}).replace(
            "2", deep
        ): "more than 500 levels",
        " " * 20_000_001: "it has more than 20 MB",
        json.dumps({"format": "litgpt chats 1", "chats": [{**chat, "model": "x" * 6_000_000}]}): "has no room for it",
    }
    page.click("#list")
    for content, sentence in wrong.items():
        page.evaluate("listChats()")
        page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()})
        page.wait_for_selector("#chats .notice")
        assert sentence in page.inner_text("#chats .notice") and page.inner_text("#chats .notice").startswith(
            "x.json is"
        )
    assert page.evaluate("chats()") == []


UNNAMED = """[...document.querySelectorAll("button, input, select, textarea, [tabindex], [role]")].filter((one) =>
  !(one.getAttribute("aria-label") || one.textContent.trim() || (one.labels && one.labels.length)) && one.id !== "main")
  .map((one) => one.outerHTML)"""


def test_everything_has_a_name_and_can_be_reached_by_keys(page, script):
    script.answers = [MARKDOWN + "\n\n- [ ] task", "more"]
    ask(page, "Hello")
    finished(page)
    page.click("#list")
    page.click("#toggle")
    assert page.evaluate(UNNAMED) == []
    page.focus("article.assistant .again")
    page.keyboard.press("Enter")
    finished(page)
    page.focus("[aria-label='The version before']")
    page.keyboard.press("Enter")
    assert page.inner_text(".versions") == "1/2"
    assert page.locator("article.assistant .unseen").inner_text() == "base (Llama)"
