// The page: two panes that share a message field, a key and the server's figures.

import { startCharts } from "./charts.js";
import { Pane } from "./pane.js";

const KEPT_AS = "jaxinfer-playground"; // settings and theme; never the key or what was said
const LOOK_EVERY_MS = 5000;
const at = (id) => document.getElementById(id);

const key = at("key");
const headers = () => (key.value ? { Authorization: `Bearer ${key.value}` } : {});
const kept = recall();
const panes = ["a", "b"].map((side) => new Pane(side, headers, keep));
let compared = false;
let model = null;
let running = null; // what stops the answers under way

panes.forEach((pane) => (pane.settings = kept[pane.side] ?? {}));
arrange(kept.compared ?? false);
dress(kept.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
const wide = matchMedia("(min-width: 1021px)");
const unfold = () => (at("settings").open = at("live").open = wide.matches);
wide.addEventListener("change", unfold);
unfold();
const redraw = startCharts(headers);
look();

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  panes.forEach((pane) => pane.clear());
  at("prompt").focus();
});
at("compare").addEventListener("click", () => {
  arrange(!compared);
  keep();
});
at("theme").addEventListener("click", () => {
  dress(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  redraw();
  keep();
});
at("keys").addEventListener("submit", (event) => event.preventDefault());
key.addEventListener("change", glance);

/** Shows one pane or both. */
function arrange(two) {
  compared = two;
  const shown = panes.slice(0, two ? 2 : 1);
  at("panes").replaceChildren(...shown.map((pane) => pane.section));
  at("panels").replaceChildren(...shown.map((pane) => pane.panel));
  at("panes").classList.toggle("two", two);
  at("compare").setAttribute("aria-pressed", String(two));
  for (const pane of shown) {
    const name = two ? `Answer ${pane.side.toUpperCase()}` : "Answer";
    pane.panel.querySelector("legend").textContent = name;
  }
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  at("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

async function send() {
  const text = at("prompt").value;
  const shown = panes.slice(0, compared ? 2 : 1);
  if (running || text.trim() === "") return;
  const wrong = shown.map((pane) => pane.wrong).find(Boolean);
  if (wrong) {
    at("settings").open = true;
    shown[0].fail(new Error(wrong));
    return;
  }
  const mine = (running = new AbortController());
  at("prompt").value = "";
  busy(true);
  at("status").textContent = "Answering.";
  const ends = await Promise.all(shown.map((pane) => pane.send(text, model, mine.signal)));
  at("status").textContent = ends.map((end) => end.words).join("; ");
  if (ends.every((end) => end.failed) && at("prompt").value === "") at("prompt").value = text;
  running = null;
  busy(false);
}

function busy(on) {
  at("send").disabled = on;
  at("stop").disabled = !on;
}

/** Says whether the server takes calls, again and again. */
async function look() {
  await glance();
  setTimeout(look, LOOK_EVERY_MS);
}

async function glance() {
  if (document.hidden) return;
  const say = (state, words) => {
    if (at("health").textContent === words) return; // nothing new to announce
    at("health").dataset.state = state;
    at("health").textContent = words;
  };
  try {
    const [ready, models] = await Promise.all([
      fetch("ready", { cache: "no-store" }),
      fetch("v1/models", { headers: headers(), cache: "no-store" }),
    ]);
    if (models.status === 401) say("down", "needs a valid API key");
    else say(ready.ok ? "ready" : "down", ready.ok ? "ready" : "not ready");
    if (models.ok) {
      model = (await models.json()).data[0].id;
      at("model").textContent = model;
    }
  } catch {
    say("down", "not reachable");
  }
}

function keep() {
  const found = { compared, theme: document.documentElement.dataset.theme };
  for (const pane of panes) found[pane.side] = pane.settings;
  try {
    localStorage.setItem(KEPT_AS, JSON.stringify(found));
  } catch {
    return; // a browser may allow nothing to be kept
  }
}

function recall() {
  try {
    return JSON.parse(localStorage.getItem(KEPT_AS)) ?? {};
  } catch {
    return {};
  }
}
