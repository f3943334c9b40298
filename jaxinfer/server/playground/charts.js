// Small plots of the server's figures, drawn on canvas.

import { figures, parseMetrics } from "./wire.js";

const KEPT = 120; // readings, one a second
const EVERY_MS = 1000;

const percent = (value) => `${(100 * value).toFixed(0)}%`;
const short = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const CHARTS = [
  { key: "speed", name: "Tokens per second", show: short, color: "--a" },
  { key: "ttft", name: "Time to first token", show: (ms) => `${short(ms)} ms`, color: "--b", sparse: true },
  { key: "cache", name: "Cache in use", show: percent, color: "--accent", top: 1 },
  { key: "bandwidth", name: "Of the bandwidth limit", show: percent, color: "--good", top: 1, optional: true },
];

/** Polls /metrics and draws; headers(): what a request carries. */
export function startCharts(headers) {
  const charts = CHARTS.map(build);
  let before = null;
  let at = 0;
  const read = async () => {
    if (document.hidden) return;
    const text = (id, value) => (document.getElementById(id).textContent = value);
    try {
      const response = await fetch("metrics", { headers: headers(), cache: "no-store" });
      if (!response.ok) throw new Error(`the server answers ${response.status} to /metrics`);
      const now = parseMetrics(await response.text());
      const time = performance.now();
      if (before !== null) {
        const found = figures(before, now, (time - at) / 1000);
        charts.forEach((chart) => chart.add(found));
        text("running", found.running ?? "–");
        text("waiting", found.waiting ?? "–");
        text("hits", found.hits === null ? "–" : percent(found.hits));
        text("live-note", "");
      }
      [before, at] = [now, time];
    } catch (error) {
      before = null;
      text("live-note", `No figures: ${error.message}.`);
    }
  };
  const again = async () => {
    await read();
    setTimeout(again, EVERY_MS);
  };
  again();
  const redraw = () => charts.forEach((chart) => chart.draw());
  new ResizeObserver(redraw).observe(document.getElementById("charts"));
  return redraw;
}

function build({ key, name, show, color, top, sparse, optional }) {
  const figure = document.getElementById("chart").content.firstElementChild.cloneNode(true);
  const [canvas, output] = [figure.querySelector("canvas"), figure.querySelector("output")];
  const label = figure.querySelector(".name");
  label.textContent = name;
  figure.hidden = Boolean(optional);
  document.getElementById("charts").append(figure);
  const values = [];
  const draw = () => paint(canvas, values, color, top, sparse);
  return {
    draw,
    add(found) {
      const value = found[key];
      if (key === "cache") label.textContent = found.cacheOf === "pages" ? name : "Places in use";
      if (optional && value !== null) figure.hidden = false;
      values.push(value);
      if (values.length > KEPT) values.shift();
      const shown = sparse ? values.findLast((one) => one !== null) ?? null : value;
      output.textContent = shown === null ? "–" : show(shown);
      const known = values.filter((one) => one !== null);
      const most = known.length ? show(Math.max(...known)) : "unknown";
      canvas.setAttribute("aria-label", `${label.textContent}: now ${output.textContent}, most ${most}`);
      draw();
    },
  };
}

/** A line of the values, newest at the right. What is not known leaves a gap; sparse: it does not, and
 * what is known has a dot. */
function paint(canvas, values, color, top, sparse) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue(color);
  const most = top ?? Math.max(1, ...values.filter((one) => one !== null)) * 1.15;
  const x = (i) => width - 3 - (values.length - 1 - i) * ((width - 6) / (KEPT - 1));
  const y = (value) => height - 2 - Math.min(value / most, 1) * (height - 6);

  pen.strokeStyle = style.getPropertyValue("--line");
  pen.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    pen.beginPath();
    pen.moveTo(0, y(part * most));
    pen.lineTo(width, y(part * most));
    pen.stroke();
  }
  pen.strokeStyle = pen.fillStyle = ink;
  pen.lineWidth = 1.8;
  pen.lineJoin = "round";
  for (const points of stretches(values, sparse)) {
    for (const i of sparse || points.length === 1 ? points : []) {
      pen.beginPath();
      pen.arc(x(i), y(values[i]), 2.2, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.beginPath();
    for (const i of points) pen.lineTo(x(i), y(values[i]));
    pen.stroke();
    pen.lineTo(x(points.at(-1)), y(0));
    pen.lineTo(x(points[0]), y(0));
    pen.globalAlpha = 0.13;
    pen.fill();
    pen.globalAlpha = 1;
  }
}

/** Where values are known, in runs without a gap, or all in one. */
function stretches(values, together) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    const goesOn = found.length && (together || values[i - 1] !== null);
    if (goesOn) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}
