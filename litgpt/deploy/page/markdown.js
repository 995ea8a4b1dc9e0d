"use strict";

// Markdown as elements. marked finds what is what, and each of its tokens becomes a node here: a model's text only ever
// becomes text nodes, so that none of it is markup, whatever it says.

const DEEPEST = 12;             // lists and quotations inside each other
const LONGEST = 8000;           // characters of a paragraph with marks: marked's time may grow with their square
const LONGEST_FORMULA = 2000;   // characters
const LONGEST_CODE = 50000;     // characters that are coloured

class Lexer extends marked.Lexer {
  depth = 0;
  blockTokens(text, tokens = [], ...rest) {
    if (this.depth >= DEEPEST) { tokens.push({ type: "text", raw: text, text }); return tokens; }
    this.depth++;
    try { return super.blockTokens(text, tokens, ...rest); } finally { this.depth--; }
  }
  inlineTokens(text, tokens = []) {
    return text.length > LONGEST ? [{ type: "text", raw: text, text }] : super.inlineTokens(text, tokens);
  }
}

function formula(name, level, start, pattern, isBlock) {
  const tokenizer = (text) => {
    const [raw, ...found] = pattern.exec(text) || [];
    if (raw) return { type: name, raw, text: found.find((part) => part !== undefined), display: isBlock || /^(\$\$|\\\[)/.test(raw) };
  };
  return { name, level, start: (text) => { const at = text.search(start); return at < 0 ? undefined : at; }, tokenizer };
}

const ANY = `([^]{1,${LONGEST_FORMULA}}?)`, ONE_LINE = `((?:[^$\\\\\\n]|\\\\.){1,${LONGEST_FORMULA}}?)`;
marked.use({
  gfm: true, breaks: true,
  tokenizer: { lheading() {} },   // a line of dashes below a text is a rule: a text must not turn large while it comes
  extensions: [
    formula("formula", "block", /(?<=^|\n) {0,3}(\$\$|\\\[)/, RegExp(`^ {0,3}(?:\\$\\$${ANY}\\$\\$|\\\\\\[${ANY}\\\\\\]) *(?:\\n|$)`), true),
    // as pandoc reads it: no blank inside the dollars, no digit behind them, so that prices stay prices
    formula("formula", "inline", /\$|\\[([]/, RegExp(
      `^(?:\\$\\$${ANY}\\$\\$|\\\\\\[${ANY}\\\\\\]|\\\\\\(${ANY}\\\\\\)|\\$(?![\\s$])${ONE_LINE}(?<!\\s)\\$(?!\\d))`), false),
  ],
});

function markdown(text) {         // the blocks of a text: its source, and what makes its element
  return new Lexer().lex(text).filter((token) => token.type !== "space" && token.type !== "def")
    .map((token) => ({ source: token.raw, build: () => node(token) }));
}

function elements(text) { return markdown(text).map((block) => block.build()); }

const NODES = {
  heading: (token) => make("h" + Math.min(6, token.depth + 2), {}, ...nodes(token.tokens)),
  paragraph: (token) => make("p", {}, ...nodes(token.tokens)),
  blockquote: (token) => make("blockquote", {}, ...nodes(token.tokens)),
  hr: () => make("hr"),
  list: (token) => make(token.ordered ? "ol" : "ul", { start: token.start > 1 ? token.start : null }, ...token.items.map(item)),
  table: ({ header, align, rows }) => {
    const row = (tag) => (cells) => make("tr", {}, ...cells.map((cell, n) =>
      make(tag, { class: align[n] === "left" ? null : align[n] }, ...nodes(cell.tokens))));
    const table = make("table", {}, make("thead", {}, row("th")(header)), make("tbody", {}, ...rows.map(row("td"))));
    return make("div", { class: "table" }, table);
  },
  code: (token) => codeBlock((token.lang || "").split(/\s/)[0], token.text),
  formula: (token) => math(token),
  strong: (token) => make("strong", {}, ...nodes(token.tokens)),
  em: (token) => make("em", {}, ...nodes(token.tokens)),
  del: (token) => make("del", {}, ...nodes(token.tokens)),
  codespan: (token) => make("code", {}, token.text),
  br: () => make("br"),
  escape: (token) => token.text,
  text: (token) => (token.tokens ? fragment(nodes(token.tokens)) : unescaped(token.text)),
  html: (token) => (/^<br *\/?>$/i.test(token.raw) ? make("br") : token.block ? make("p", {}, token.raw.trim()) : token.raw),
  link: (token) => link(token, nodes(token.tokens)),
  image: (token) => link(token, [token.text || token.href]),   // nothing is fetched that a model names
};

function node(token) { return Object.hasOwn(NODES, token.type) ? NODES[token.type](token) : token.raw; }
function nodes(tokens) { return tokens.filter((token) => token.type !== "space" && token.type !== "checkbox").map(node); }
function fragment(parts) { const all = new DocumentFragment(); all.append(...parts); return all; }

function link({ href, raw }, label) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return raw;
  return make("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...label);
}

const ENTITY = /&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z]\w{1,30});/gi;
const decoder = document.createElement("textarea");   // what it is given becomes its text and nothing else
function unescaped(text) { return text.replace(ENTITY, (entity) => { decoder.innerHTML = entity; return decoder.value; }); }

function item({ tokens, task, checked }) {
  const box = task ? [make("input", { type: "checkbox", disabled: "", checked: checked ? "" : null, "aria-label": checked ? "Done" : "To do" }), " "] : [];
  return make("li", { class: task ? "task" : null }, ...box, ...nodes(tokens));
}

function codeBlock(language, code) {
  const copy = button("Copy", () => copyText(code, copy));
  const head = make("div", { class: "code-head" }, make("span", {}, language || "text"), copy);
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, make("code", {}, ...colored(language, code))));
}

function colored(language, code) {
  if (!hljs.getLanguage(language) || code.length > LONGEST_CODE) return [code];
  const parsed = new DOMParser().parseFromString(hljs.highlight(code, { language, ignoreIllegals: true }).value, "text/html");
  const copy = (one) => one.nodeType === Node.TEXT_NODE ? one.data
    : make("span", { class: [...one.classList].filter((name) => /^(hljs-)?\w+$/.test(name)).join(" ") }, ...[...one.childNodes].map(copy));
  return parsed.body.textContent === code ? [...parsed.body.childNodes].map(copy) : [code];
}

function math({ text, raw, display }) {
  const box = make(display ? "div" : "span", { class: "formula" });
  try { katex.render(text, box, { output: "mathml", displayMode: display, trust: false, maxSize: 20, maxExpand: 500 }); }
  catch (error) { box.replaceChildren(make("code", { title: error.message }, raw.trim())); }
  return box;
}
