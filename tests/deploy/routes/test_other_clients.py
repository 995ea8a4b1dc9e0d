"""Clients of other people, unmodified: `langchain-openai`, and the `openai` and `@anthropic-ai/sdk` packages of npm."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import alone, make_service, running
from tests.generate.folder import make_folder

PACKAGES = ("openai", "@anthropic-ai/sdk")
NODE = """
import OpenAI from 'openai'
import Anthropic from '@anthropic-ai/sdk'
const client = new OpenAI({ baseURL: process.argv[2] + '/v1', apiKey: 's3cret', maxRetries: 0 })
const base = { model: 'tiny', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 12 }
const told = {}
const chat = await client.chat.completions.create(base)
told.chat = chat.choices[0].message.content
told.usage = chat.usage.completion_tokens
told.stream = ''
for await (const chunk of await client.chat.completions.create({ ...base, stream: true }))
  told.stream += chunk.choices[0]?.delta?.content ?? ''
told.stop = (await client.chat.completions.create({ ...base, stop: told.chat.slice(4, 6) })).choices[0]
const seeded = () => client.chat.completions.create({ ...base, temperature: 1.5, seed: 7 })
told.seeds = [(await seeded()).choices[0].message.content, (await seeded()).choices[0].message.content]
const schema = { type: 'object', properties: { a: { enum: ['x', 'y'] } }, required: ['a'], additionalProperties: false }
const format = { type: 'json_schema', json_schema: { name: 'n', schema, strict: true } }
const kept = await client.chat.completions.create({ ...base, max_tokens: 90, response_format: format })
told.json = kept.choices[0].message.content
try { await client.chat.completions.create({ ...base, temperature: -1 }) } catch (error) {
  told.error = [error.constructor.name, error.status, error.param]
}
try { await client.models.retrieve('no') } catch (error) { told.missing = error.constructor.name }
try { await new OpenAI({ baseURL: process.argv[2] + '/v1', apiKey: 'x', maxRetries: 0 }).models.list() }
catch (error) { told.key = error.constructor.name }
const asked = { model: 'tiny', max_output_tokens: 12, input: 'Hi' }
told.response = (await client.responses.create(asked)).output_text
told.events = ''
for await (const event of await client.responses.create({ ...asked, stream: true }))
  if (event.type === 'response.output_text.delta') told.events += event.delta
const other = new Anthropic({ baseURL: process.argv[2], apiKey: 's3cret', maxRetries: 0 })
const { max_tokens, messages, model } = base
told.message = (await other.messages.create({ max_tokens, messages, model })).content[0].text
told.blocks = await other.messages.stream({ max_tokens, messages, model }).finalText()
told.counted = (await other.messages.countTokens({ messages, model })).input_tokens
try { await other.messages.create({ max_tokens, messages, model: 'no' }) } catch (error) {
  told.lost = [error.constructor.name, error.error.error.type]
}
told.vector = (await client.embeddings.create({ model: 'tiny', input: 'Hi' })).data[0].embedding.length
console.log(JSON.stringify(told))
"""


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    folder: Path = make_folder(tmp_path_factory.mktemp("serve") / "tiny", block_size=512)
    return InferenceModel.load(folder, "cpu", "32-true")


@pytest.fixture(scope="module")
def url(inference_model) -> Iterator[str]:
    with running(make_service(inference_model, keys=["s3cret"])) as url:
        yield url


@pytest.mark.slow
def test_npms_clients(url, inference_model, tmp_path):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm here")
    done = subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], cwd=tmp_path, timeout=240)
    if done.returncode:
        pytest.skip("npm can't install the clients here")
    (tmp_path / "client.mjs").write_text(NODE)
    command = ["node", "client.mjs", url]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    expected = alone(inference_model, "Hi", 12)
    assert told["chat"] == told["stream"] == expected and told["usage"] == 12
    assert told["stop"]["finish_reason"] == "stop" and expected.startswith(told["stop"]["message"]["content"])
    assert told["seeds"][0] == told["seeds"][1] != expected
    assert json.loads(told["json"])["a"] in ("x", "y")
    assert told["error"] == ["BadRequestError", 400, "temperature"]
    assert (told["missing"], told["key"]) == ("NotFoundError", "AuthenticationError")
    assert {told[name] for name in ("response", "events", "message", "blocks")} == {expected}
    assert told["counted"] == len(inference_model.encode("Hi")) and told["lost"] == ["NotFoundError", "not_found_error"]
    assert told["vector"] == 32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_langchain(url, inference_model):
    langchain = pytest.importorskip("langchain_openai")
    from pydantic import BaseModel

    class Colour(BaseModel):
        """A colour."""

        red: bool

    settings = dict(model="tiny", base_url=f"{url}/v1", api_key="s3cret", max_retries=0)
    model = langchain.ChatOpenAI(**settings, max_tokens=12, temperature=0)
    answer = model.invoke("Hi")
    assert answer.content == alone(inference_model, "Hi", 12)
    assert answer.usage_metadata["output_tokens"] == 12
    assert "".join(str(chunk.content) for chunk in model.stream("Hi")) == answer.content
    longer = langchain.ChatOpenAI(**settings, max_tokens=90, temperature=0)
    assert isinstance(longer.with_structured_output(Colour, method="json_schema").invoke("Hi"), Colour)
    embeddings = langchain.OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    assert len(embeddings.embed_query("Hi")) == 32


BROWSER = """
<!doctype html><script type=module>
import OpenAI from '/node_modules/openai/index.mjs'
const client = new OpenAI({ baseURL: '%s/v1', apiKey: 's3cret', dangerouslyAllowBrowser: true, maxRetries: 0 })
const base = { model: 'tiny', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 12 }
const told = { stream: '' }
try {
  for await (const chunk of await client.chat.completions.create({ ...base, stream: true }))
    told.stream += chunk.choices[0]?.delta?.content ?? ''
  told.models = (await client.models.list()).data.map((model) => model.id)
  told.id = (await client.chat.completions.create(base))._request_id
  try { await client.chat.completions.create({ ...base, temperature: -1 }) } catch (error) { told.error = error.status }
} catch (error) { told.failed = String(error) }
window.told = told
</script>
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_npms_openai_in_a_page_of_an_allowed_origin(inference_model, tmp_path):
    npm, chromium = shutil.which("npm"), shutil.which("chromium") or shutil.which("google-chrome")
    if npm is None or chromium is None:
        pytest.skip("needs npm and Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    done = subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=tmp_path, timeout=240)
    if done.returncode:
        pytest.skip("npm can't install openai here")
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{pages.server_port}"
    with running(make_service(inference_model, keys=["s3cret"], origins=[origin])) as url, pages:
        (tmp_path / "index.html").write_text(BROWSER % url)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            told = {}
            for at in (origin, origin.replace("127.0.0.1", "localhost")):
                page = browser.new_page()
                page.goto(at)
                page.wait_for_function("() => window.told", timeout=60_000)
                told[at] = page.evaluate("window.told")
            browser.close()
        pages.shutdown()
    allowed, other = told.values()
    assert allowed["stream"] == alone(inference_model, "Hi", 12) and allowed["models"] == ["tiny"]
    assert allowed["id"] and allowed["error"] == 400 and "failed" not in allowed
    assert "Connection error" in other["failed"]
