"use strict";

// A run from a recipe: edited here, checked by the command's own parser, previewed, started.

async function offer() {
  const { recipes, commands } = await ask("api/recipes");
  $("command").replaceChildren(...commands.map((name) => make("option", { value: name }, name)));
  $("recipe").replaceChildren(make("option", { value: "" }, "Choose one, or write your own"),
    ...recipes.map((one) => make("option", { value: one.name, title: one.title }, `${one.name} (${one.device})`)));
}

function answer(text, failed = false) {
  $("answer").textContent = text;
  $("answer").className = failed ? "failed" : "";
}

async function submit(path, waiting) {  // what the server says of the recipe; null: it has told what is wrong
  for (const name of ["check", "preview", "start"]) $(name).disabled = true;
  answer(waiting);
  try {
    const told = await ask(path, { command: $("command").value, text: $("text").value });
    answer("");
    return told;
  } catch (error) { answer(error.message, true); return null; }
  finally { for (const name of ["check", "preview", "start"]) $(name).disabled = false; }
}

$("open").addEventListener("click", async () => {
  $("new").hidden = !$("new").hidden;
  $("open").setAttribute("aria-expanded", String(!$("new").hidden));
  if ($("new").hidden) return;
  try { if (!$("recipe").options.length) await offer(); $("recipe").focus(); } catch (error) { answer(error.message, true); }
});
$("recipe").addEventListener("change", async () => {
  if (!$("recipe").value) return;
  try {
    const { command, text } = await ask("api/recipe?name=" + encodeURIComponent($("recipe").value));
    $("command").value = command;
    $("text").value = text;
    answer("");
  } catch (error) { answer(error.message, true); }
});
$("check").addEventListener("click", async () => {
  const told = await submit("api/check", "Checking …");
  if (told) answer(`The command takes it, and will write to ${told.out_dir}.`);
});
$("preview").addEventListener("click", async () => {
  const told = await submit("api/preview", "Reading the data …");
  $("previewed").hidden = !told;
  if (!told) return;
  const legend = make("p", { class: "soft" }, "Tokens of the text that are ", make("mark", {}, "learned"), " are marked.");
  $("previewed").replaceChildren(legend, ...told.samples.flatMap(({ title, pieces }) => [make("p", { class: "soft" }, title),
    make("pre", { tabindex: "0" }, ...pieces.map(([text, learned]) => (learned ? make("mark", {}, text) : text)))]),
    make("pre", { tabindex: "0" }, told.summary));
});
$("start").addEventListener("click", async () => {
  const told = await submit("api/start", "Starting …");
  if (!told) return;
  answer(`Started: ${told.name}.`);
  wanted.add(current = told.name);
  refresh();
});
