// What comes over the wire, as values. Pure functions: no page, no network.

/** Server-sent events from text that comes in pieces: push(text) -> the data of every whole event. */
export function eventReader() {
  let rest = "";
  let data = [];
  return (text) => {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      if (line === "" && data.length) {
        found.push(data.join("\n"));
        data = [];
      }
    }
    return found;
  };
}

/** Text that an event of a stream adds, of a chat or of a completion. */
export function addedText(event) {
  return (event.choices ?? []).map((one) => one.text ?? one.delta?.content ?? "").join("");
}

/** The body of a request, and where it goes. history: [{role, content}]; settings: see fields(). */
export function request(settings, history, model) {
  const { mode, system, ...parameters } = settings;
  // usage in every chunk, so that an answer that is stopped is counted too
  const counts = { include_usage: true, continuous_usage_stats: true };
  const body = { ...parameters, stream: true, stream_options: counts };
  if (model) body.model = model;
  if (mode === "completion") {
    return { path: "v1/completions", body: { ...body, prompt: history.at(-1).content } };
  }
  const first = system ? [{ role: "system", content: system }] : [];
  return { path: "v1/chat/completions", body: { ...body, messages: [...first, ...history] } };
}

/** What an answer that is no success says: the message of OpenAI's error shape, or its beginning. */
export function complaint(status, text) {
  try {
    const { message, code } = JSON.parse(text).error;
    return { message: message ?? text, code: code ?? null };
  } catch {
    return { message: `the server answers ${status}: ${text.slice(0, 200)}`, code: null };
  }
}

/** Prometheus' text as {name: value}, summed over labels. */
export function parseMetrics(text) {
  const found = {};
  for (const [, name, value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)/gm)) {
    const number = Number(value);
    if (Number.isFinite(number)) found[name] = (found[name] ?? 0) + number;
  }
  return found;
}

/** What two readings, `seconds` apart, say. null: not known, or nothing happened. */
export function figures(before, now, seconds) {
  const grew = (name) => (name in now && name in before ? now[name] - before[name] : null);
  const per = (part, whole) => (part !== null && whole > 0 ? part / whole : null);
  const first = "jaxinfer_time_to_first_token_seconds";
  const ttft = per(grew(`${first}_sum`), grew(`${first}_count`));
  const pages = now.jaxinfer_pages > 0;
  return {
    speed: per(grew("jaxinfer_generated_tokens_total"), seconds),
    ttft: ttft === null ? null : 1000 * ttft,
    cache: pages
      ? per(now.jaxinfer_pages_used, now.jaxinfer_pages)
      : per(now.jaxinfer_requests_running ?? null, now.jaxinfer_slots),
    cacheOf: pages ? "pages" : "places",
    bandwidth: now.jaxinfer_mbu ?? null,
    running: now.jaxinfer_requests_running ?? null,
    waiting: now.jaxinfer_requests_waiting ?? null,
    hits: per(now.jaxinfer_prefix_hit_tokens_total ?? null, now.jaxinfer_read_prompt_tokens_total),
  };
}
