"use strict";

const SAMPLING = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const SAVE_MS = 1000;     // how often an answer is kept while it comes
const FORMAT = "litgpt chats 1", LARGEST_FILE = 20e6, DEEPEST_VERSION = 500;
const touch = matchMedia("(pointer: coarse)").matches;
let chat = fresh();       // {id, at, model, messages: [{role, content, thought, note, older, newer}]}
let running = null;       // AbortController of the answer under way
let served = new Map();   // model's name -> what the server tells of it
let atEnd = true;         // whether the page follows the answer

function fresh() { return { id: Date.now().toString(36) + Math.random().toString(36).slice(2), messages: [] }; }

// -- messages as elements

function blocksOf({ content, thought = "" }) {        // what a model thinks aloud is folded away once it answers
  const [inside = "", aloud = ""] = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/.exec(content) || [];
  const answer = content.slice(inside.length), source = thought + aloud + (answer.trim() ? "." : "");
  const open = answer.trim() ? {} : { open: "" };
  const build = () => make("details", open, make("summary", {}, "Reasoning"), ...elements(thought + aloud));
  return [...((thought + aloud).trim() ? [{ source, build }] : []), ...markdown(answer)];
}

function render(box, message) {   // blocks that are as they were stay as they are: a selection in them too
  const before = box.blocks || [], now = blocksOf(message);
  let same = 0;
  while (same < before.length && same < now.length && before[same].source === now[same].source) same++;
  while (box.childNodes.length > same) box.lastChild.remove();
  box.append(...now.slice(same).map((block) => block.build()));
  box.blocks = now;
}

async function copyText(text, control) {
  const label = control.textContent;
  try { await navigator.clipboard.writeText(text); control.textContent = "Copied"; }
  catch { control.textContent = copySelected(text) ? "Copied" : "Not allowed"; }
  setTimeout(() => { control.textContent = label; }, 1200);
}

function copySelected(text) {     // over plain http browsers have no clipboard, but they copy what is selected
  const box = make("textarea", { class: "unseen", "aria-hidden": "true" }), focused = document.activeElement;
  box.value = text;
  document.body.append(box);
  box.select();
  try { return document.execCommand("copy"); }
  catch { return false; }
  finally { box.remove(); focused.focus(); }
}

// -- versions: a message in the place of others keeps them, each with all that followed it

function versions(messages, index) {
  const { older = [], newer = [], ...message } = messages[index];
  return { at: older.length, all: [...older, [message, ...messages.slice(index + 1)], ...newer] };
}

function choose(one, index, at) {
  const { all } = versions(one.messages, index), [message, ...rest] = all[at];
  const chosen = { ...message, older: all.slice(0, at), newer: all.slice(at + 1) };
  one.messages = [...one.messages.slice(0, index), chosen, ...rest];
}

function replace(one, index, message) {
  if (index < one.messages.length) message.older = versions(one.messages, index).all;
  one.messages = [...one.messages.slice(0, index), message];
}

function dropEmpty(one) {         // an answer that never came; what it was to replace is there again
  const index = one.messages.length - 1, { role, content, thought, older = [] } = one.messages[index] || {};
  if (role !== "assistant" || content || thought) return;
  if (!older.length) { one.messages.pop(); return; }
  choose(one, index, older.length - 1);
  one.messages[index].newer = [];
}

// -- the conversation on screen

function show() {
  $("log").replaceChildren(...chat.messages.map(view));
  if (!chat.messages.length)
    $("log").append(make("div", { id: "empty" }, make("h1", {}, shown($("model").value) || "Chat"),
      make("p", {}, "Ask something. Chats are kept in this browser and nowhere else.")));
  document.title = title(chat) || shown($("model").value) || "Chat";
  listChats();
}

function view(message, index) {
  const text = make("div", { class: "text" }), tools = make("div", { class: "tools" }), mine = message.role === "user";
  const article = make("article", { class: message.role }, make("span", { class: "unseen" }, mine ? "You" : message.model || "Model"), text, tools);
  if (mine) {
    text.append(message.content);
    tools.append(button("Edit", () => edit(index, article), { class: "edit" }));
  } else {
    render(text, message);
    const copy = button("Copy", () => copyText(message.content, copy));
    tools.append(copy);
    tools.append(button("Regenerate", () => answerFrom(index), { class: "again" }));
    tools.append(make("span", { class: "note" }, message.note || ""));
  }
  const { all, at } = versions(chat.messages, index);
  if (all.length > 1) {
    const turn = (by) => () => { choose(chat, index, at + by); keepChat(chat); show(); };
    const [before, after] = [button("‹", turn(-1), { class: "again", "aria-label": "The version before" }),
      button("›", turn(1), { class: "again", "aria-label": "The next version" })];
    before.disabled = !at;
    after.disabled = at === all.length - 1;
    tools.append(before, make("span", { class: "versions" }, `${at + 1}/${all.length}`), after);
  }
  if (running) for (const control of tools.querySelectorAll(".edit, .again")) control.disabled = true;
  return article;
}

function edit(index, article) {
  if (running) return;
  const box = make("textarea", { "aria-label": "Edit your message", rows: "3" });
  box.value = chat.messages[index].content;
  const send = () => {
    if (!box.value.trim()) return;
    replace(chat, index, { role: "user", content: box.value.trim() });
    answerFrom(index + 1);
  };
  box.addEventListener("keydown", (event) => {
    if (sends(event)) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); show(); $("prompt").focus(); }
  });
  article.classList.add("editing");
  article.replaceChildren(box, make("div", { class: "tools" }, button("Send", send, { class: "main" }), button("Cancel", show)));
  box.focus();
}

function notice(text) {
  const last = chat.messages.at(-1);
  const again = last && last.role === "user" ? [button("Try again", () => answerFrom(chat.messages.length), { class: "framed" })] : [];
  $("log").append(make("div", { class: "notice", role: "alert" }, make("span", {}, text), ...again));
  follow(true);
}

function follow(always) {
  atEnd = atEnd || always;
  if (atEnd) $("main").scrollTop = $("main").scrollHeight;
}

// -- the server

function body(conversation) {
  const system = $("system").value.trim();
  const sent = conversation.map(({ role, content }) => ({ role, content }));
  const request = {
    model: $("model").value, stream: true, stream_options: { include_usage: true },
    messages: system ? [{ role: "system", content: system }, ...sent] : sent,
  };
  for (const name of SAMPLING) if ($(name).value !== "") request[name] = Number($(name).value);
  return JSON.stringify(request);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function problem(response) {
  let said = "";
  try { const answer = await response.json(); said = (answer.error && answer.error.message) || JSON.stringify(answer.detail || answer); }
  catch { /* no JSON: the status has to do */ }
  if (response.status === 401) { panel("settings", true); $("key").focus(); }
  return `${said || response.statusText || "The request failed."} (${response.status})`;
}

async function answerFrom(length) {
  if (running) return;
  const own = chat, control = running = new AbortController();
  own.model = $("model").value;
  keepHere("chat", own.id);
  const asked = body(own.messages.slice(0, length)), message = { role: "assistant", content: "", note: "", model: shown(own.model) };
  replace(own, length, message);
  keepChat(own);
  busy(true);
  show();
  const article = $("log").lastElementChild, text = article.querySelector(".text"), note = article.querySelector(".note");
  article.classList.add("writing");
  follow(true);
  let failed = "", began = performance.now(), first = 0, pieces = 0, usage = null, reason = "", drawn = true, saved = performance.now();
  const draw = () => {
    drawn = true;
    render(text, message);
    note.textContent = message.note;
    follow(false);
    if (performance.now() - saved < SAVE_MS) return;
    saved = performance.now();
    keepChat(own);
  };
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: asked, signal: control.signal });
    if (!response.ok) throw new Error(await problem(response));
    for await (const data of events(response)) {
      if (data === "[DONE]") { reason = reason || "stop"; break; }
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices && event.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason || reason;
      const { content, reasoning_content: thought } = choice.delta || {};
      if (!content && !thought) continue;
      first = first || performance.now();
      pieces++;
      message.content += content || "";
      if (thought) message.thought = (message.thought || "") + thought;
      message.note = speed(pieces, first);
      if (drawn) { drawn = false; requestAnimationFrame(draw); }
    }
    if (!reason) throw new Error("The answer broke off; the server may have ended.");
    message.note = [speed(usage ? usage.completion_tokens : pieces, first, began), cut(reason, usage)].filter(Boolean).join(" · ");
  } catch (error) {
    if (error.name === "AbortError") message.note = [speed(pieces, first), "stopped"].filter(Boolean).join(" · ");
    else failed = error instanceof TypeError ? "The server does not answer." : error.message;
  }
  running = null;
  if (failed) dropEmpty(own);
  busy(false);
  keepChat(own);
  show();
  if (own !== chat) return;       // another one has been opened meanwhile
  if (failed) notice(failed);
  follow(false);
  if (!touch) $("prompt").focus();
}

function speed(tokens, first, began) {
  const seconds = (performance.now() - first) / 1000;
  if (!first || seconds <= 0.05 || tokens <= 1) return "";
  const wait = began ? ` · first after ${((first - began) / 1000).toFixed(1)} s` : "";
  return `${tokens} tokens · ${((tokens - 1) / seconds).toFixed(1)} tokens/s${wait}`;
}

function cut(reason, usage) {
  const { max_model_len: most } = served.get($("model").value) || {};
  if (reason !== "length") return "";
  return most && usage && usage.total_tokens >= most ? "the context is full: begin a new chat" : "cut at the limit";
}

async function models() {
  const wanted = $("model").value || new URLSearchParams(location.search).get("model") || chat.model;
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) { notice(await problem(response)); return; }
    served = new Map((await response.json()).data.map((model) => [model.id, model]));
    $("model").replaceChildren(...[...served.keys()].map((name) => make("option", { value: name }, shown(name))));
    if (served.has(wanted)) $("model").value = wanted;
    if (!running) show();
    defaults();
  } catch { notice("The server does not answer."); }
}

function shown(name) {            // the model's own name too, where the server calls it by that of a folder
  const own = (served.get(name) || {}).display_name;
  return own && own !== name ? `${name} (${own})` : name;
}

function defaults() {             // what the server does where a field is empty
  const { sampling } = served.get($("model").value) || {};
  for (const [name, value] of Object.entries(sampling || {})) $(name).placeholder = value === null ? "all" : value;
}

// -- earlier chats, in this browser

function chats() {
  try { return JSON.parse(kept("list") || "[]").filter((one) => one && one.id && Array.isArray(one.messages)); }
  catch { return []; }
}
function title(one) { return one.messages.length ? String(one.messages[0].content).trim().slice(0, 60) : ""; }

function keepChat(one) {
  one.at = Date.now();
  const done = keep("list", JSON.stringify([one, ...chats().filter((other) => other.id !== one.id)]));
  $("full").hidden = done;
}

function deleted() { try { return JSON.parse(keptHere("deleted") || "[]"); } catch { return []; } }

function forget(gone) {           // until the tab closes, there is a way back
  const ids = new Set(gone.map((one) => one.id));
  keepHere("deleted", JSON.stringify([...gone, ...deleted().filter((one) => !ids.has(one.id))]));
  keep("list", JSON.stringify(chats().filter((one) => !ids.has(one.id))));
  listChats();
}

function restore() {
  const list = chats(), ids = new Set(list.map((one) => one.id));
  const all = [...list, ...deleted().filter((one) => !ids.has(one.id))].sort((one, other) => (other.at || 0) - (one.at || 0));
  if (keep("list", JSON.stringify(all))) keepHere("deleted", "[]");
  listChats();
}

function openChat(one) {
  if (one.id === chat.id) return;
  if (running) running.abort();
  chat = one;
  keepHere("chat", one.id);
  if (served.has(one.model)) { $("model").value = one.model; defaults(); }
  if (narrow()) panel("chats", false);
  show();
  follow(true);
  if (!touch) $("prompt").focus();
}

function listChats() {
  const list = chats(), gone = deleted();
  const rows = list.map((one) => make("div", { class: "row" },
    button(title(one), () => openChat(one), { title: title(one), "aria-current": String(one.id === chat.id) }),
    button("×", () => forget([one]), { "aria-label": "Delete " + title(one) })));
  const about = make("p", {}, list.length ? "Kept in this browser only." : "No chats yet.");
  const all = [button("Export all", () => download(list), { class: "framed" }), button("Delete all", () => forget(list), { class: "framed" })];
  const back = gone.length ? [button(`Undo: ${gone.length} deleted`, restore, { class: "framed" })] : [];
  $("chats").replaceChildren(...rows, about, ...back, button("Import", () => $("file").click(), { class: "framed" }), ...(list.length ? all : []));
}

function download(list) {         // every message with its versions
  const address = URL.createObjectURL(new Blob([JSON.stringify({ format: FORMAT, chats: list }, null, 2)], { type: "application/json" }));
  make("a", { href: address, download: "chats.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function upload(file) {
  try {
    if (file.size > LARGEST_FILE) throw new Error(`it has more than ${LARGEST_FILE / 1e6} MB`);
    const added = chatsOf(await file.text()), list = chats(), known = new Map(list.map((one) => [one.id, JSON.stringify(one)]));
    const news = added.filter((one) => known.get(one.id) !== JSON.stringify(one))
      .map((one) => (known.has(one.id) ? { ...one, id: fresh().id } : one));
    const done = keep("list", JSON.stringify([...news, ...list].sort((one, other) => other.at - one.at)));
    if (!done) throw new Error("this browser has no room for it");
    listChats();
  } catch (error) { $("chats").prepend(make("div", { class: "notice", role: "alert" }, `${file.name} is not taken: ${error.message}.`)); }
}

function chatsOf(text) {          // what an exported file holds, and nothing that isn't a chat's
  let read;
  try { read = JSON.parse(text); } catch { throw new Error("it is no JSON"); }
  if (!read || read.format !== FORMAT || !Array.isArray(read.chats)) throw new Error("it holds no chats that this page has written");
  return read.chats.map((one) => {
    if (!one || typeof one.id !== "string" || !one.id || one.id.length > 100) throw new Error("a chat in it has no id");
    const chat = { id: one.id, messages: messagesOf(one.messages), at: Number.isFinite(one.at) ? one.at : Date.now() };
    return typeof one.model === "string" ? { ...chat, model: one.model } : chat;
  });
}

function messagesOf(list, level = 0) {
  if (!Array.isArray(list) || !list.length) throw new Error("a chat in it has no messages");
  if (level > DEEPEST_VERSION) throw new Error(`its versions lie more than ${DEEPEST_VERSION} levels inside each other`);
  return list.map((one) => {
    if (!one || !["user", "assistant"].includes(one.role) || typeof one.content !== "string") throw new Error("a message in it has no role or no text");
    const message = { role: one.role, content: one.content };
    for (const name of ["thought", "note", "model"]) if (typeof one[name] === "string") message[name] = one[name];
    for (const name of ["older", "newer"]) if (Array.isArray(one[name])) message[name] = one[name].map((version) => messagesOf(version, level + 1));
    return message;
  });
}

// -- controls

const PANELS = { chats: "list", settings: "toggle" };

function narrow() { return matchMedia("(max-width: 48rem)").matches; }

function panel(name, open) {
  if (open && narrow()) for (const other of Object.keys(PANELS)) if (other !== name) panel(other, false);
  $(name).hidden = !open;
  $(PANELS[name]).setAttribute("aria-expanded", String(open));
}

function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
  $("log").setAttribute("aria-busy", String(now));
}

function fit() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + "px";
}

function sends(event) { return event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch; }

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  keepHere("draft", "");
  fit();
  chat.messages.push({ role: "user", content: text });
  answerFrom(chat.messages.length);
});
$("prompt").addEventListener("input", () => { fit(); keepHere("draft", $("prompt").value); });
$("prompt").addEventListener("keydown", (event) => {
  if (sends(event)) { event.preventDefault(); $("form").requestSubmit(); }
  if (event.key === "ArrowUp" && !$("prompt").value && !running) {
    const last = chat.messages.map((message) => message.role).lastIndexOf("user");
    if (last >= 0) { event.preventDefault(); edit(last, $("log").children[last]); }
  }
});
$("stop").addEventListener("click", () => running && running.abort());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) return running.abort();
  const open = Object.keys(PANELS).find((name) => !$(name).hidden);
  if (open) { panel(open, false); $(PANELS[open]).focus(); }
});
$("new").addEventListener("click", () => openChat(fresh()));
for (const [name, control] of Object.entries(PANELS)) $(control).addEventListener("click", () => panel(name, $(name).hidden));
$("main").addEventListener("scroll", () => {
  const below = $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight;
  atEnd = below < 40;
  $("down").hidden = below < 200;
});
$("file").addEventListener("change", () => { for (const file of $("file").files) upload(file); $("file").value = ""; });
$("down").addEventListener("click", () => follow(true));
$("model").addEventListener("change", () => { defaults(); if (!chat.messages.length) show(); });
$("key").addEventListener("change", () => { keepHere("key", $("key").value); models(); });
const FIELDS = ["system", ...SAMPLING], RESET = $("reset").textContent;
let cleared = null;       // what the fields held before they were reset
function fill(values) { for (const name of FIELDS) { $(name).value = values[name] || ""; keep(name, values[name] || null); } }
$("reset").addEventListener("click", () => {
  const held = Object.fromEntries(FIELDS.map((name) => [name, $(name).value]));
  fill(cleared || {});
  cleared = cleared ? null : held;
  $("reset").textContent = cleared ? "Undo the reset" : RESET;
});
for (const name of FIELDS) {
  $(name).value = kept(name) || "";
  $(name).addEventListener("input", () => { keep(name, $(name).value || null); cleared = null; $("reset").textContent = RESET; });
}
addEventListener("pagehide", () => running && keepChat(chat));
$("key").value = keptHere("key");
chat = chats().find((one) => one.id === keptHere("chat")) || chat;
const unanswered = (chat.messages.at(-1) || {}).role === "user" || (chat.messages.length && !chat.messages.at(-1).content);
dropEmpty(chat);
show();
if (unanswered) notice("The answer was interrupted.");
$("prompt").value = keptHere("draft");
fit();
models();
