// One side of the conversation: its settings, its messages, its answer as it comes.

import { addedText, complaint, eventReader, request } from "./wire.js";

const NEAR = 60; // pixels from its end in which a log follows what is added

export class Pane {
  /** side: "a" or "b"; headers(): what a request carries; changed(): settings were changed. */
  constructor(side, headers, changed) {
    this.side = side;
    this.headers = headers;
    this.history = [];
    this.section = fresh("pane");
    this.panel = fresh("panel");
    this.section.dataset.side = this.panel.dataset.side = side;
    this.section.querySelector(".tag").textContent = side.toUpperCase();
    this.log = this.section.querySelector(".log");
    this.log.setAttribute("aria-label", `Conversation ${side.toUpperCase()}`);
    for (const field of this.panel.querySelectorAll(".field")) connect(field, side);
    this.panel.addEventListener("input", (event) => {
      mirror(this.panel, event.target);
      this.describe();
      changed();
    });
    this.describe();
    this.clear();
  }

  get inputs() {
    return [...this.panel.querySelectorAll("[data-name]")];
  }

  /** What was set; what was left empty is not there. */
  get settings() {
    const found = {};
    for (const input of this.inputs) {
      if (input.value.trim() === "") continue;
      found[input.dataset.name] = input.type === "number" ? Number(input.value) : input.value;
    }
    return found;
  }

  set settings(values) {
    for (const input of this.inputs) {
      if (input.dataset.name in values) input.value = values[input.dataset.name];
      mirror(this.panel, input);
    }
    this.describe();
  }

  /** The first setting that cannot be, in words. */
  get wrong() {
    const input = this.inputs.find((one) => !one.checkValidity());
    return input ? `${input.labels[0].textContent}: ${input.validationMessage}` : null;
  }

  describe() {
    const { mode, temperature, top_p, top_k, seed } = this.settings;
    const words = [mode, `temperature ${temperature ?? 1}`];
    if (top_p !== undefined && top_p !== 1) words.push(`top p ${top_p}`);
    if (top_k) words.push(`top k ${top_k}`);
    if (seed !== undefined) words.push(`seed ${seed}`);
    this.section.querySelector(".what").textContent = words.join(" · ");
  }

  clear() {
    this.history = [];
    const empty = element("div", "empty");
    empty.append(element("strong", "", "Nothing said yet"), "Your words go to this server and to nowhere else.");
    this.log.replaceChildren(empty);
  }

  /** Sends one message and shows the answer; resolves to {failed, words}: how it ended. */
  async send(text, model, signal) {
    const settings = this.settings;
    const raw = settings.mode === "completion";
    const history = this.history; // another one once it is cleared
    this.log.querySelector(".empty")?.remove();
    if (!raw) this.add(message("user", text));
    const { path, body } = request(settings, [...history, { role: "user", content: text }], model);
    const answer = message(raw ? "raw open" : "open", "");
    const words = answer.querySelector(".text");
    if (raw) words.append(element("span", "given", text));
    const said = new Text("");
    words.append(said);
    this.add(answer);
    this.log.setAttribute("aria-busy", "true");
    const taken = { began: performance.now(), first: null, last: null, usage: null, reason: null };
    let failure = null;
    try {
      for await (const event of this.stream(path, body, signal)) {
        if (event.error) throw Object.assign(new Error(event.error.message), { code: event.error.code });
        const more = addedText(event);
        if (more) {
          taken.last = performance.now();
          taken.first ??= taken.last;
          this.follow(() => said.appendData(more));
        }
        taken.reason = event.choices?.[0]?.finish_reason ?? taken.reason;
        taken.usage = event.usage ?? taken.usage;
      }
    } catch (error) {
      failure = error;
    }
    const stopped = failure?.name === "AbortError";
    if (stopped) taken.reason = "stopped";
    answer.classList.remove("open");
    this.log.removeAttribute("aria-busy");
    if (!raw && (said.data || failure === null)) {
      history.push({ role: "user", content: text }, { role: "assistant", content: said.data });
    }
    if (said.data || failure === null || stopped) {
      this.follow(() => answer.append(element("p", "meta", summary(taken))));
    } else answer.remove();
    const failed = failure !== null && !stopped;
    if (failed) this.fail(failure);
    return { failed, words: failed ? failure.message : summary(taken) };
  }

  async *stream(path, body, signal) {
    const response = await fetch(path, {
      method: "POST",
      headers: { ...this.headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) {
      const { message, code } = complaint(response.status, await response.text());
      throw Object.assign(new Error(message), { code });
    }
    const read = eventReader();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the answer ended before its last word");
      for (const data of read(value)) {
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }

  fail(error) {
    const box = element("div", "error", error.message);
    box.setAttribute("role", "alert");
    if (error.code === "no_chat_template") {
      const button = element("button", "", "Switch to completion");
      button.type = "button";
      button.addEventListener("click", () => {
        const mode = this.inputs.find((one) => one.dataset.name === "mode");
        mode.value = "completion";
        mode.dispatchEvent(new Event("input", { bubbles: true }));
        box.remove();
        document.getElementById("prompt").focus();
      });
      box.append(button);
    }
    this.add(box);
  }

  add(node) {
    this.log.append(node);
    this.log.scrollTop = this.log.scrollHeight;
  }

  /** A change that the log follows, unless the reader has gone up. */
  follow(change) {
    const { scrollTop, clientHeight, scrollHeight } = this.log;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.log.scrollTop = this.log.scrollHeight;
  }
}

function summary({ began, first, last, usage, reason }) {
  if (first === null) return reason === "stopped" ? "stopped before the first word" : "no text";
  const tokens = usage?.completion_tokens ?? 0;
  const words = [`first word after ${(first - began).toFixed(0)} ms`];
  if (tokens > 1 && last > first) words.push(`${((1000 * (tokens - 1)) / (last - first)).toFixed(1)} tokens/s`);
  if (usage) words.push(`${tokens} tokens`);
  if (usage?.prompt_tokens_details?.cached_tokens) {
    words.push(`${usage.prompt_tokens_details.cached_tokens} of ${usage.prompt_tokens} prompt tokens from the cache`);
  }
  if (reason === "length") words.push("ended at max tokens");
  if (reason === "stopped") words.push("stopped");
  return words.join(" · ");
}

function fresh(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function element(name, look, text = "") {
  const made = document.createElement(name);
  made.className = look;
  made.textContent = text;
  return made;
}

function message(look, text) {
  const made = element("div", `message ${look}`);
  made.append(element("div", "text", text));
  return made;
}

/** Labels name their inputs; ranges show what their numbers say. */
function connect(field, side) {
  const input = field.querySelector("[data-name]");
  input.id = `${input.dataset.name}-${side}`;
  field.querySelector("label").htmlFor = input.id;
  mirror(field, input);
}

function mirror(place, input) {
  const { name, mirror: shown } = input.dataset;
  const other = place.querySelector(shown ? `[data-name="${shown}"]` : `[data-mirror="${name}"]`);
  if (other && input.value !== "") other.value = input.value;
}
