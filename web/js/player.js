// Two videos, compared under a wipe, side by side, or as a difference; always the same frame on both sides.
//
//   const player = createPlayer(container, { left: { src, label }, right: { src, label }, fps, frames, series });
//   player.load(options), play(), pause(), seek(frame), frame, destroy()
//
// docs/player.md lists all options, events and keys.

import { FrameClock, ahead, clamp, leash, newestPair } from "./player_clock.js";
import { createControls, showFrame, showMessage, showPlaying, showView } from "./player_controls.js";
import { keyAction, movedDivider } from "./player_keys.js";
import { fill, labelsFor } from "./player_labels.js";
import { createPlot, seriesFault } from "./player_plot.js";
import { VideoSource } from "./player_source.js";
import { attachPointers } from "./player_stage.js";
import { MODES, NO_ZOOM, draw, heightFor, layout, panBy, zoomAt } from "./player_view.js";

export { LABELS } from "./player_labels.js";

const MEMORY = 192 * 2 ** 20; // bytes of decoded frames that one player keeps
const ZOOM_STEP = 1.5;
const ERRORS = { missing: "errorMissing", load: "errorLoad", format: "errorFormat", decode: "errorDecode" };
const TALLEST = 0.72; // of the window's height, where the pictures' shape gives the height

/** What is wrong with the options, as a sentence; null where nothing is. */
export function optionsFault({ left, right, fps, frames, series = [] } = {}) {
  if (!left?.src || !right?.src) return "a video has no address";
  if (!(fps > 0 && fps <= 1000)) return `fps is ${fps}`;
  if (frames !== undefined && !(Number.isInteger(frames) && frames > 0)) return `frames is ${frames}`;
  return frames === undefined ? null : seriesFault(series, frames);
}

class Player {
  constructor(container, options) {
    this.container = container;
    this.document = container.ownerDocument;
    this.view = { mode: "wipe", gain: 8, zoom: NO_ZOOM, divider: 0.5 };
    this.scratch = this.document.createElement("canvas");
    this.load(options);
  }

  /** Show another pair; what the visitor chose (view, speed, loop) stays. */
  load(options) {
    const { speed = 1, loop = true } = this.clock ?? {};
    this.clear();
    this.options = options ?? {};
    this.abort = new AbortController();
    this.labels = labelsFor(this.options.locale, this.options.labels);
    this.names = [this.options.left?.label ?? "A", this.options.right?.label ?? "B"];
    this.clock = Object.assign(new FrameClock(1, 1), { speed, loop });
    this.aspect = 16 / 9;
    this.build();
    const fault = optionsFault(options);
    if (fault) this.fail(fill(this.labels.errorInput, { reason: fault }));
    else this.open(this.abort.signal);
  }

  build() {
    const { signal } = this.abort;
    this.ui = createControls(this.document, this.labels, { ask: (action, value) => this.act(action, value), signal });
    this.ui.root.dataset.theme = this.options.theme ?? "auto";
    this.ui.root.toggleAttribute("data-fill", Boolean(this.options.fill));
    this.ui.root.addEventListener("keydown", (event) => this.key(event), { signal });
    this.container.append(this.ui.root);
    attachPointers(this.ui, this.pointing(), signal);
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(this.ui.stage);
    this.resizing.observe(this.ui.root);
    showMessage(this.ui, "loading", this.labels.loading);
    this.resize();
  }

  async open(signal) {
    const { left, right, fps, frames } = this.options;
    const sides = [left, right];
    this.sources = sides.map(
      (_, side) =>
        new VideoSource({
          parent: this.ui.stage,
          fps,
          budget: this.options.memory ?? MEMORY,
          onError: (reason, status) => this.fail(fill(this.labels[ERRORS[reason]], { side: this.names[side], status })),
        }),
    );
    await Promise.all(this.sources.map((source, side) => source.load(sides[side].src)));
    if (signal.aborted || this.failed) return;
    // Containers may leave the last frame's duration out: one frame less than announced is the same length.
    const shortest = Math.min(...this.sources.map((source) => source.length));
    const length = frames === undefined ? Math.max(1, shortest) : frames;
    const fault = shortest < length - 1 ? this.tooShort(length) : seriesFault(this.options.series ?? [], length);
    if (fault) return this.fail(fill(this.labels.errorInput, { reason: fault }));
    this.start(length, fps);
    await this.seekPair(0);
    if (signal.aborted || this.failed) return;
    showMessage(this.ui, null);
    this.refresh();
    this.tell("ready", {
      frames: length,
      width: this.sources[0].video.videoWidth,
      height: this.sources[0].video.videoHeight,
    });
    if (this.playSoon) this.play();
  }

  tooShort(length) {
    const parts = this.sources.map((source, side) => `${this.names[side]}: ${source.length}`);
    return `${length} frames were announced, the videos have ${parts.join(", ")}`;
  }

  start(frames, fps) {
    const { speed, loop } = this.clock;
    this.clock = Object.assign(new FrameClock(frames, fps), { speed, loop });
    this.aspect = this.sources[0].aspect;
    this.ui.scrub.max = frames - 1;
    for (const source of this.sources) source.open(frames);
    this.plot = createPlot(this.ui.plots, {
      series: this.options.series ?? [],
      frames,
      labels: this.labels,
      signal: this.abort.signal,
      onSeek: (frame) => this.seek(frame),
    });
    this.ready = true;
    this.resize();
  }

  get frame() {
    return Math.max(0, this.shown);
  }

  hasPair(index) {
    return this.sources.every((source) => source.store.has(index));
  }

  play() {
    if (!this.ready || this.failed) {
      this.playSoon = !this.failed;
      return;
    }
    if (this.clock.running) return;
    this.clock.start(performance.now());
    const at = Math.floor(this.clock.position);
    this.anchor = at === this.shown ? at : at - 1; // another frame was asked for, or it starts over from its end
    showPlaying(this.ui, this.labels, true);
    this.wake();
  }

  pause() {
    this.playSoon = false;
    if (!this.clock.running) return;
    this.clock.stop();
    showPlaying(this.ui, this.labels, false);
    this.seek(this.anchor === this.shown ? this.shown : this.wanted);
  }

  wake() {
    this.ticking ||= requestAnimationFrame((now) => this.tick(now));
  }

  /** Once per picture of the screen: show what is due, and fetch frames for as long as any are wanted. */
  tick(now) {
    this.ticking = 0;
    if (this.clock.running) this.advance(now);
    const due = Math.floor(this.clock.position);
    const busy = this.sources.map((source) => source.serve(due, this.clock.speed));
    if (this.clock.running || busy.includes(true)) this.wake();
  }

  advance(now) {
    const { clock, anchor } = this;
    const has = (index) => this.hasPair(index);
    const before = Math.floor(clock.position);
    // After a jump the clock waits for the very frame that was asked for; else it may run to pairs further on.
    const limit = anchor === this.shown ? leash(anchor, has, clock.frames, clock.loop) : anchor + 1.99;
    const allowed = limit - anchor - ahead(anchor, before, clock.frames);
    const next = newestPair(anchor, clock.advance(now, before + allowed), has, clock.frames);
    if (next !== anchor) this.present(next);
    if (clock.running) return;
    showPlaying(this.ui, this.labels, false); // it came to its end
    if (this.shown !== clock.frames - 1) this.seekPair(clock.frames - 1);
  }

  seek(frame) {
    if (!this.ready || this.failed || !Number.isFinite(frame)) return;
    const wanted = clamp(Math.round(frame), 0, this.clock.frames - 1);
    this.clock.seek(wanted);
    if (!this.clock.running) return void this.seekPair(wanted);
    [this.anchor, this.wanted] = [wanted - 1, wanted];
    for (const source of this.sources) source.seek(wanted);
  }

  /** Bring both sides to one frame, then show it. One pair is fetched at a time; of the wishes meanwhile the last counts. */
  async seekPair(frame) {
    this.wanted = frame;
    showFrame(this.ui, this.labels, this.moment(frame));
    if (this.fetching) return;
    const { signal } = this.abort;
    this.fetching = true;
    while (!signal.aborted) {
      const wanted = this.wanted;
      await Promise.all(this.sources.map((source) => source.seek(wanted)));
      if (signal.aborted) return;
      if (!this.clock.running) this.present(wanted);
      if (this.wanted === wanted) break;
    }
    this.fetching = false;
    this.wake();
  }

  moment(frame) {
    return { frame, frames: this.clock.frames, fps: this.clock.fps, names: this.names };
  }

  present(frame) {
    if (!this.hasPair(frame)) return;
    [this.shown, this.anchor] = [frame, frame];
    this.paint();
    if (this.clock.running) this.wanted = frame;
    showFrame(this.ui, this.labels, this.moment(this.wanted));
    this.plot.show(frame);
    this.tell("frame", { frame });
  }

  shape() {
    const { clientWidth: width, clientHeight: height } = this.ui.stage;
    return layout({ ...this.view, width, height, aspect: this.aspect });
  }

  resize() {
    const { stage } = this.ui;
    if (!this.options.fill) {
      const tallest = TALLEST * (this.document.defaultView?.innerHeight || 900);
      stage.style.height = `${Math.round(Math.min(heightFor(this.view.mode, stage.clientWidth, this.aspect), tallest))}px`;
    }
    this.refresh();
  }

  /** Give the canvas a pixel for each of the screen's, also where a host scales the stage (ComfyUI's zoom; it tells nobody). */
  sharpen() {
    const { stage, canvas } = this.ui;
    const scale = stage.getBoundingClientRect().width / stage.clientWidth;
    const screen = this.document.defaultView?.devicePixelRatio || 1;
    const ratio = Math.min(4, screen * (Math.abs(scale - 1) < 0.01 ? 1 : Math.ceil(scale * 4) / 4));
    const size = [stage.clientWidth, stage.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    return ratio;
  }

  refresh() {
    const { speed, loop } = this.clock;
    showView(this.ui, this.labels, { ...this.view, speed, loop, names: this.names, shape: this.shape() });
    this.paint();
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.ui.stage;
    if (this.shown < 0 || !this.ready || !width || !height || !this.hasPair(this.shown)) return;
    const images = this.sources.map((source) => source.store.get(this.shown));
    const how = { ...this.view, width, height, ratio: this.sharpen(), scratch: this.scratch };
    draw(this.ui.canvas.getContext("2d"), how, this.shape(), images);
  }

  key(event) {
    const { target } = event;
    const kind = { button: "button", select: "select" }[target.localName] ?? "other";
    const action = keyAction(event, target === this.ui.divider ? "divider" : kind);
    if (!action) return;
    event.preventDefault();
    event.stopPropagation(); // hosts have keys of their own
    this.act(action);
  }

  act(action, value) {
    const { clock, view } = this;
    if (!this.ready || this.failed) return;
    const at = this.wanted;
    const steps = {
      previous: at - 1,
      next: at + 1,
      back: at - 10,
      forward: at + 10,
      first: 0,
      last: clock.frames - 1,
      seek: value,
    };
    const step = steps[action];
    if (step !== undefined) {
      if (action === "previous" || action === "next") this.pause();
      return this.seek(step);
    }
    if (action === "toggle") return clock.running ? this.pause() : this.play();
    if (action === "loop") clock.loop = !clock.loop;
    else if (action === "speed") clock.speed = value;
    else if (action === "gain") view.gain = value;
    else if (MODES.includes(action)) view.mode = action;
    else if (action === "zoomReset") view.zoom = NO_ZOOM;
    else if (action.startsWith("zoom")) return this.zoomBy(action === "zoomIn" ? ZOOM_STEP : 1 / ZOOM_STEP);
    else view.divider = movedDivider(view.divider, action);
    this.resize();
  }

  paneAt(point) {
    const { panes } = this.shape();
    const [, other = null] = panes;
    return other && point && point.x >= other.x && point.y >= other.y ? other : panes[0];
  }

  zoomBy(factor, point) {
    const pane = this.paneAt(point);
    const centre = point ?? { x: pane.x + pane.width / 2, y: pane.y + pane.height / 2 };
    this.view.zoom = zoomAt(pane, this.aspect, this.view.zoom, centre, factor);
    this.refresh();
  }

  pointing() {
    return {
      state: () => this.view,
      // In a page the plain wheel scrolls. Where the player fills a host's box, it is ours while the focus is inside.
      wheelZooms: () => Boolean(this.options.fill) && this.ui.root.contains(this.ui.root.getRootNode().activeElement),
      setDivider: (x) => {
        const { area } = this.shape();
        this.view.divider = clamp((x - area.x) / Math.max(1, area.width), 0, 1);
        this.refresh();
      },
      pan: (dx, dy, point) => {
        this.view.zoom = panBy(this.paneAt(point), this.aspect, this.view.zoom, dx, dy);
        this.refresh();
      },
      zoomAt: (point, factor) => this.zoomBy(factor, point),
    };
  }

  tell(name, detail) {
    this.container.dispatchEvent(new CustomEvent(`sedialect:${name}`, { detail, bubbles: true, composed: true }));
  }

  fail(message) {
    if (this.failed || this.abort.signal.aborted) return;
    cancelAnimationFrame(this.ticking);
    this.clock.stop();
    for (const source of this.sources) source.halt();
    this.failed = true;
    showMessage(this.ui, "error", message);
    this.tell("error", { message });
  }

  clear() {
    cancelAnimationFrame(this.ticking);
    this.abort?.abort();
    this.resizing?.disconnect();
    this.sources?.forEach((source) => source.destroy());
    this.ui?.root.remove();
    Object.assign(this, { sources: [], ready: false, failed: false, fetching: false, playSoon: false });
    Object.assign(this, { shown: -1, anchor: -1, wanted: null, ticking: 0, plot: null });
  }
}

/** Put a player into `container`. See the top of this file for its options. */
export function createPlayer(container, options) {
  const player = new Player(container, options);
  return {
    load: (next) => player.load(next),
    play: () => player.play(),
    pause: () => player.pause(),
    seek: (frame) => player.seek(frame),
    get frame() {
      return player.frame;
    },
    destroy: () => player.clear(),
  };
}
