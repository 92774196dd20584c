// Series of one number per frame, as small charts with a cursor.

import { clamp } from "./player_clock.js";
import { fill } from "./player_labels.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, MARGIN] = [1000, 100, 8];

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** What is wrong with a list of series, as a sentence; null where nothing is. */
export function seriesFault(series, frames) {
  if (!Array.isArray(series)) return "series is not a list";
  for (const [number, { name, values } = {}] of series.entries()) {
    if (typeof name !== "string" || !name) return `series ${number} has no name`;
    if (!Array.isArray(values) && !ArrayBuffer.isView(values)) return `series "${name}" has no list of values`;
    if (values.length !== frames) return `series "${name}" has ${values.length} values for ${frames} frames`;
  }
  return null;
}

/** Smallest and largest finite value; null where there is none (infinite PSNR of equal frames, say). */
export function rangeOf(values) {
  const finite = Array.from(values).filter(isNumber);
  if (!finite.length) return null;
  return { low: finite.reduce((a, b) => Math.min(a, b)), high: finite.reduce((a, b) => Math.max(a, b)) };
}

/** Place of a frame along a chart and of a value up it, in 0..1. A constant series runs through the middle. */
export const along = (frame, frames) => (frames > 1 ? frame / (frames - 1) : 0.5);
export const up = (value, { low, high }) => (high > low ? (value - low) / (high - low) : 0.5);

/** The frame at a place in 0..1. */
export const frameAlong = (place, frames) => clamp(Math.round(place * (frames - 1)), 0, frames - 1);

/** SVG path of a series; values that are no finite numbers leave gaps, and lonely values get a short dash. */
export function pathOf(values, range) {
  const point = (value, frame) => {
    const x = along(frame, values.length) * WIDTH;
    const y = HEIGHT - MARGIN - up(value, range) * (HEIGHT - 2 * MARGIN);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  };
  let path = "";
  Array.from(values).forEach((value, frame) => {
    if (!isNumber(value)) return;
    const joined = isNumber(values[frame - 1]);
    path += `${joined ? "L" : "M"}${point(value, frame)}`;
    if (!joined && !isNumber(values[frame + 1])) path += "h0.1";
  });
  return path;
}

/** A number in about four digits. */
export function short(value) {
  if (value === Infinity) return "∞";
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4);
}

function chart(document, { name, unit = "", values }, number, labels) {
  const make = (tag, className, text) => {
    const element = Object.assign(document.createElement(tag), { className });
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const range = rangeOf(values);
  const box = make("div", "sedialect-player-series");
  box.style.setProperty("--series", `var(--series-${number % 4})`);
  const head = make("div", "sedialect-player-series-head");
  const now = make("span", "sedialect-player-series-now");
  const ends = range ? { low: short(range.low), high: short(range.high) } : { low: "–", high: "–" };
  const span = make("span", "sedialect-player-series-range", range ? `${ends.low} – ${ends.high}` : labels.noValue);
  head.append(make("span", "sedialect-player-series-name", name), now, span);
  const plot = make("div", "sedialect-player-series-plot");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", fill(labels.series, { name, unit, ...ends }).trim());
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", range ? pathOf(values, range) : "");
  svg.append(line);
  const [cursor, dot] = [make("div", "sedialect-player-cursor"), make("div", "sedialect-player-dot")];
  plot.append(svg, cursor, dot);
  box.append(head, plot);
  const show = (frame) => {
    const value = values[frame];
    now.textContent = `${short(value)}${unit ? ` ${unit}` : ""}`;
    cursor.style.left = dot.style.left = `${along(frame, values.length) * 100}%`;
    dot.hidden = !isNumber(value);
    if (range && isNumber(value)) dot.style.top = `${MARGIN + (1 - up(value, range)) * (HEIGHT - 2 * MARGIN)}%`;
  };
  return { box, plot, show };
}

/** Fill `parent` with charts; a press or drag on one calls `onSeek(frame)`. Returns what moves the cursors. */
export function createPlot(parent, { series, frames, labels, signal, onSeek }) {
  const charts = series.map((one, number) => chart(parent.ownerDocument, one, number, labels));
  parent.replaceChildren(...charts.map(({ box }) => box));
  parent.hidden = !charts.length;
  for (const { plot } of charts) {
    const seek = (event) => {
      const { left, width } = plot.getBoundingClientRect();
      onSeek(frameAlong(clamp((event.clientX - left) / width, 0, 1), frames));
    };
    plot.addEventListener(
      "pointerdown",
      (event) => {
        if (event.button) return;
        plot.setPointerCapture(event.pointerId);
        seek(event);
      },
      { signal },
    );
    plot.addEventListener("pointermove", (event) => plot.hasPointerCapture(event.pointerId) && seek(event), { signal });
  }
  return { show: (frame) => charts.forEach((one) => one.show(frame)) };
}
