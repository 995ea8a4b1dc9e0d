"use strict";

// What the pages share: elements, what this browser keeps, the key, light and dark.

const $ = (id) => document.getElementById(id);

// -- elements; text only ever becomes text nodes, so nothing a model or a user writes is markup

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function button(text, onclick, attributes = {}) { return make("button", { type: "button", onclick, ...attributes }, text); }

// -- what is kept: in this browser, and in this tab

function keep(name, value) {
  try { value === null ? localStorage.removeItem("chat." + name) : localStorage.setItem("chat." + name, value); return true; }
  catch { return false; /* full, or not allowed */ }
}
function kept(name) { try { return localStorage.getItem("chat." + name); } catch { return null; } }
function keepHere(name, value) { try { sessionStorage.setItem(name, value); } catch { /* not kept */ } }
function keptHere(name) { try { return sessionStorage.getItem(name) || ""; } catch { return ""; } }

// -- the key

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
}

// -- light and dark

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  keep("theme", (root.dataset.theme = dark ? "light" : "dark"));
});
if (kept("theme")) document.documentElement.dataset.theme = kept("theme");
