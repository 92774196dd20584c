// The player's elements: a stage, a bar of controls, room for plots. They report what was asked for; they decide nothing.

import { GAINS, MODES } from "./player_view.js";
import { fill } from "./player_labels.js";
import { STYLE } from "./player_style.js";

export const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const ICONS = {
  play: '<path d="M5 3.2v9.6a.6.6 0 0 0 .9.5l7.8-4.8a.6.6 0 0 0 0-1L5.9 2.7a.6.6 0 0 0-.9.5z"/>',
  pause:
    '<rect x="3.6" y="2.6" width="3.1" height="10.8" rx=".8"/><rect x="9.3" y="2.6" width="3.1" height="10.8" rx=".8"/>',
  previous:
    '<rect x="3" y="3" width="1.8" height="10" rx=".6"/><path d="M13 3.7v8.6a.5.5 0 0 1-.8.4L6.4 8.4a.5.5 0 0 1 0-.8l5.8-4.3a.5.5 0 0 1 .8.4z"/>',
  next: '<rect x="11.2" y="3" width="1.8" height="10" rx=".6"/><path d="M3 3.7v8.6c0 .4.5.6.8.4l5.8-4.3a.5.5 0 0 0 0-.8L3.8 3.3a.5.5 0 0 0-.8.4z"/>',
  loop: '<path d="M11.2 1.6 14 4.3l-2.8 2.7V5.1H5.4A2.4 2.4 0 0 0 3 7.5v.3H1.4v-.3a4 4 0 0 1 4-4h5.8zM4.8 14.4 2 11.7 4.8 9v1.9h5.8A2.4 2.4 0 0 0 13 8.5v-.3h1.6v.3a4 4 0 0 1-4 4H4.8z"/>',
  plus: '<path d="M7.2 3h1.6v4.2H13v1.6H8.8V13H7.2V8.8H3V7.2h4.2z"/>',
  minus: '<path d="M3 7.2h10v1.6H3z"/>',
  grip: '<path d="M6 4 2.2 8 6 12zM10 4l3.8 4L10 12z"/>',
};
const icon = (name) =>
  `<svg width="16" height="16" viewBox="0 0 16 16" fill="currentColor" aria-hidden="true">${ICONS[name]}</svg>`;

function build(document, tag, className, attributes = {}, children = []) {
  const element = document.createElement(tag);
  if (className)
    element.className = className
      .split(" ")
      .map((name) => `sedialect-player${name && `-${name}`}`)
      .join(" ");
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Make all elements. `ask(action, value)` is called for everything a visitor does to a control. */
export function createControls(document, labels, { ask, signal }) {
  const make = (...args) => build(document, ...args);
  const button = (name, label, className = "", face = icon(name)) => {
    const element = make("button", className, { type: "button", "aria-label": label, title: label });
    element.innerHTML = face;
    element.addEventListener("click", () => ask(name), { signal });
    return element;
  };
  const select = (name, label, values, text) => {
    const element = make("select", "", { "aria-label": label, title: label });
    element.append(
      ...values.map((value) => Object.assign(document.createElement("option"), { value, textContent: text(value) })),
    );
    element.addEventListener("change", () => ask(name, Number(element.value)), { signal });
    return element;
  };
  const ui = { ...stageOf(make, labels), ...barOf(make, { button, select }, labels) };
  ui.scrub = make("input", "scrub", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": labels.frame });
  ui.scrub.addEventListener("input", () => ask("seek", Number(ui.scrub.value)), { signal });
  ui.plots = make("div", "plots", { hidden: "" });
  const style = Object.assign(document.createElement("style"), { textContent: STYLE });
  const panel = make("div", "panel", {}, [ui.scrub, ui.bar]);
  ui.root = make("div", "", { role: "group", "aria-label": labels.player, tabindex: -1 }, [
    style,
    ui.stage,
    panel,
    ui.plots,
  ]);
  ui.root.classList.add("sedialect-player");
  return ui;
}

function stageOf(make, labels) {
  const canvas = make("canvas", "canvas", { role: "img" });
  const names = [make("span", "name"), make("span", "name")];
  const grip = make("span", "grip");
  grip.innerHTML = icon("grip");
  const divider = make(
    "div",
    "divider",
    {
      role: "slider",
      tabindex: 0,
      "aria-label": labels.divider,
      "aria-orientation": "horizontal",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
    },
    [grip],
  );
  const text = make("span", "");
  const message = make("div", "message", { role: "alert", hidden: "" }, [text]);
  const stage = make("div", "stage", {}, [canvas, ...names, divider, message]);
  return { canvas, names, divider, message, text, stage };
}

function barOf(make, { button, select }, labels) {
  const play = button("toggle", labels.play, "play", icon("play"));
  const [previous, next] = [button("previous", labels.previous), button("next", labels.next)];
  const time = make("span", "time");
  const modes = Object.fromEntries(
    MODES.map((mode) => {
      const element = button(mode, labels[mode], "", "");
      element.textContent = labels[mode];
      element.removeAttribute("aria-label"); // its text is its name
      return [mode, element];
    }),
  );
  const gain = select("gain", labels.gain, GAINS, (value) => `\u00d7${value}`);
  const speed = select("speed", labels.speed, SPEEDS, (value) => `${value}\u00d7`);
  const loop = button("loop", labels.loop, "loop");
  const zoomReset = button("zoomReset", labels.zoomReset, "zoom", "");
  const zoomOut = button("zoomOut", labels.zoomOut, "", icon("minus"));
  const zoomIn = button("zoomIn", labels.zoomIn, "", icon("plus"));
  const group = (className, children, attributes = {}) =>
    make("div", `group${className && ` ${className}`}`, attributes, children);
  const bar = make("div", "bar", {}, [
    group("", [previous, play, next]),
    time,
    group("modes", Object.values(modes), { role: "group", "aria-label": labels.view, "data-push": "" }),
    group("rest", [gain, speed, loop, group("", [zoomOut, zoomReset, zoomIn])]),
  ]);
  return { bar, play, previous, next, time, modes, gain, speed, loop, zoomIn, zoomOut, zoomReset };
}

/** Show what is so: a frame, a clock, a view. */
export function showFrame(ui, labels, { frame, frames, fps, names }) {
  const seconds = (frame / fps).toFixed(2);
  ui.scrub.value = frame;
  ui.scrub.style.setProperty("--at", `${frames > 1 ? (frame / (frames - 1)) * 100 : 0}%`);
  ui.scrub.setAttribute("aria-valuetext", fill(labels.frameOf, { frame: frame + 1, frames, seconds }));
  const count = Object.assign(ui.time.ownerDocument.createElement("b"), { textContent: String(frame + 1) });
  ui.time.replaceChildren(count, ` / ${frames}  \u00b7  ${seconds} s`);
  ui.canvas.setAttribute("aria-label", fill(labels.stage, { left: names[0], right: names[1], frame: frame + 1 }));
}

export function showPlaying(ui, labels, running) {
  const label = running ? labels.pause : labels.play;
  ui.play.innerHTML = icon(running ? "pause" : "play");
  ui.play.setAttribute("aria-label", label);
  ui.play.title = label;
}

export function showView(ui, labels, { mode, gain, zoom, divider, loop, speed, names, shape }) {
  for (const [name, element] of Object.entries(ui.modes)) element.setAttribute("aria-pressed", String(name === mode));
  ui.loop.setAttribute("aria-pressed", String(loop));
  [ui.gain.value, ui.gain.hidden, ui.speed.value] = [gain, mode !== "difference", speed];
  ui.zoomReset.textContent = zoom.scale === 1 ? labels.zoomReset : `${Math.round(zoom.scale * 100)}%`;
  ui.stage.dataset.mode = mode;
  ui.stage.toggleAttribute("data-zoomed", zoom.scale > 1);
  ui.divider.hidden = mode !== "wipe";
  const { area } = shape;
  Object.assign(ui.divider.style, { left: `${shape.dividerX}px`, top: `${area.y}px`, height: `${area.height}px` });
  const percent = Math.round(divider * 100);
  ui.divider.setAttribute("aria-valuenow", percent);
  ui.divider.setAttribute(
    "aria-valuetext",
    fill(labels.dividerAt, { left: names[0], right: names[1], percent, rest: 100 - percent }),
  );
  showNames(ui, labels, { mode, gain, names, shape });
}

function showNames({ names: [left, right], stage }, labels, { mode, gain, names, shape: { panes, dividerX } }) {
  const width = stage.clientWidth;
  left.textContent =
    mode === "difference" ? `${labels.difference} \u00d7${gain}: ${names[0]} \u2013 ${names[1]}` : names[0];
  left.style.maxWidth = mode === "difference" ? "94%" : "";
  right.textContent = names[1];
  right.hidden = mode === "difference";
  for (const name of [left, right]) name.style.top = "8px";
  left.style.left = "8px";
  right.style.left = "auto";
  right.style.right = "8px";
  if (mode === "side")
    Object.assign(right.style, { top: `${panes[1].y + 8}px`, left: `${panes[1].x + 8}px`, right: "auto" });
  left.toggleAttribute("data-covered", mode === "wipe" && dividerX < left.offsetWidth + 12);
  right.toggleAttribute("data-covered", mode === "wipe" && dividerX > width - right.offsetWidth - 12);
}

/** "loading", "error" with a sentence, or nothing over the stage. */
export function showMessage(ui, kind, text = "") {
  ui.message.hidden = !kind;
  ui.message.dataset.kind = kind ?? "";
  ui.text.textContent = text;
  const idle = kind === "loading" || kind === "error";
  for (const element of [ui.scrub, ...ui.bar.querySelectorAll("button, select")]) element.disabled = idle;
  ui.divider.style.visibility = idle ? "hidden" : "";
  for (const name of ui.names) name.style.visibility = idle ? "hidden" : "";
}
