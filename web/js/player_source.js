// One side's media element: a supplier of frames, never itself on show.

import { FrameStore, capacityFor, clamp, supply } from "./player_clock.js";

const SETTLE_MS = 150; // after a seek, how long the browser's own frame report is waited for
const JUMP_SECONDS = 0.5;
const SLOWEST = 0.2; // of the normal pace, while fetching

/** Number of the frame that is on screen at `seconds`; a little slack for times rounded down by the container. */
export const frameAt = (seconds, fps) => Math.floor(seconds * fps + 0.1);

/** Middle of a frame: a seek there is safe from rounding on either side. */
export const middleOf = (frame, fps) => (frame + 0.5) / fps;

export class VideoSource {
  /** @param {{parent: Element, fps: number, budget: number, onError: (reason: string) => void}} options */
  constructor(options) {
    Object.assign(this, options);
    this.video = this.parent.ownerDocument.createElement("video");
    Object.assign(this.video, { muted: true, playsInline: true, preload: "auto", disableRemotePlayback: true });
    Object.assign(this.video, { tabIndex: -1, className: "sedialect-player-media" });
    this.video.setAttribute("aria-hidden", "true");
    this.abort = new AbortController();
    this.waiting = new Map();
    this.due = 0;
    this.last = -1;
    this.pace = 1;
    this.seeksOnly = this.settling = false;
    this.timer = 0;
    const listen = (name, act) => this.video.addEventListener(name, act, { signal: this.abort.signal });
    listen("error", () => this.onError(this.fault()));
    listen("seeked", () => this.settle());
    listen("ended", () => this.length <= this.frames && this.captureAs(this.frames - 1));
    this.parent.append(this.video);
  }

  fault() {
    if (this.video.error?.code === MediaError.MEDIA_ERR_DECODE) return "decode";
    return this.address ? "format" : "load"; // a file that arrived is there, whatever it is
  }

  /** Resolves when size and length are known and the first picture can be drawn. */
  async load(src) {
    const address = await this.fetched(src);
    const { signal } = this.abort;
    if (!address || signal.aborted) return;
    await new Promise((resolve) => {
      this.video.addEventListener("loadeddata", resolve, { once: true, signal });
      this.video.src = address;
      this.video.load();
    });
  }

  /**
   * The whole file as an address of this page: clips are short, and then every seek works, whatever the server can do.
   * The server is asked whether its file is still the same, for a new run may write under an old name.
   */
  async fetched(src) {
    try {
      const response = await fetch(src, { signal: this.abort.signal, cache: "no-cache" });
      if (!response.ok) return this.onError("missing", response.status);
      const file = await response.blob();
      if (this.abort.signal.aborted) return null;
      this.address = URL.createObjectURL(file);
      return this.address;
    } catch {
      return src; // another origin that pages may not read: the media element may still play it
    }
  }

  /** Start keeping frames; the length was agreed between both sides. */
  open(frames) {
    const { videoWidth, videoHeight } = this.video;
    this.frames = frames;
    this.store = new FrameStore(frames, capacityFor(videoWidth, videoHeight, this.budget));
    this.watch();
  }

  get length() {
    return Math.round(this.video.duration * this.fps);
  }

  get aspect() {
    return this.video.videoWidth / this.video.videoHeight;
  }

  /** The frame at which the element stands; `frames` at its end. */
  get head() {
    return this.video.ended ? this.frames : Math.min(this.frames, frameAt(this.video.currentTime, this.fps));
  }

  watch() {
    if (this.abort.signal.aborted) return;
    this.seeksOnly = !this.video.requestVideoFrameCallback;
    if (this.seeksOnly) return;
    this.callback = this.video.requestVideoFrameCallback((_, { mediaTime }) => {
      this.capture(mediaTime);
      this.watch();
    });
  }

  /** Keep the picture that the element shows now, under its own time stamp where the browser tells it, else the report's. */
  capture(mediaTime) {
    let seconds = mediaTime;
    let picture = this.video;
    try {
      picture = new VideoFrame(this.video);
      seconds = picture.timestamp / 1e6;
    } catch {
      picture = this.video; // VideoFrame is for secure pages and same-origin media
    }
    const index = Math.round(seconds * this.fps);
    this.measure(index);
    this.keep(index, picture);
  }

  /** A browser that cannot keep up drops frames. Then the element goes slower: frames in memory count, not its own pace. */
  measure(index) {
    const step = index - this.last;
    this.last = index;
    if (this.video.paused || step < 1 || step > 16) return;
    this.pace = step > 1 ? Math.max(SLOWEST, this.pace * 0.8) : Math.min(1, this.pace * 1.02);
  }

  captureAs(index) {
    if (this.store && !this.store.has(index)) this.keep(index, this.video);
  }

  async keep(index, picture) {
    const wanted = index >= 0 && index < this.frames && !this.store.has(index);
    try {
      const image = wanted ? await createImageBitmap(picture) : null;
      if (!image) return;
      if (this.abort.signal.aborted || this.store.has(index)) return image.close();
      this.store.put(index, image, this.due);
      this.arrived(index);
    } catch (error) {
      if (!this.abort.signal.aborted) this.onError("decode", error);
    } finally {
      if (picture !== this.video) picture.close();
    }
  }

  arrived(index) {
    this.waiting.get(index)?.();
    this.waiting.delete(index);
  }

  /** Resolves when the frame is in the store, or a new wish replaces this one. Until then the element stands still. */
  seek(index) {
    this.due = index;
    for (const done of this.waiting.values()) done();
    this.waiting.clear();
    if (this.store.has(index)) return Promise.resolve();
    this.halt();
    return new Promise((resolve) => {
      this.waiting.set(index, resolve);
      this.jump(index);
    });
  }

  jump(index) {
    this.target = index;
    this.video.currentTime = middleOf(index, this.fps);
  }

  /** After a seek the browser reports the frame; one it reports under another time, or not at all, is the one asked for. */
  settle() {
    clearTimeout(this.timer);
    const { target, video } = this;
    this.settling = this.seeksOnly;
    this.timer = setTimeout(() => {
      this.settling = false;
      if (target === this.target && video.paused && !video.seeking) this.captureAs(target);
    }, SETTLE_MS);
  }

  /** Fetch what a clock at frame `due` with this speed needs next, then the rest. False where nothing is left to do. */
  serve(due, speed) {
    this.due = due;
    const { video, store, frames, head } = this;
    if (video.seeking || this.waiting.size || this.settling) return true;
    const jump = this.seeksOnly ? -1 : JUMP_SECONDS * this.fps;
    const order = supply({ due, head, has: (index) => store.has(index), frames, room: store.room, jump });
    if (order === "halt") this.halt();
    else this.run(order === "run" && head >= frames ? 0 : order, speed);
    return order !== "halt";
  }

  run(order, speed) {
    const { video } = this;
    if (order !== "run") this.jump(order);
    if (this.seeksOnly) return;
    const wanted = clamp(Math.max(1, speed) * 1.1 * this.pace, 0.0625, 16);
    if (Math.abs(video.playbackRate / wanted - 1) > 0.05) video.playbackRate = wanted;
    if (video.paused) video.play().catch((error) => this.refused(error));
  }

  /** A browser may forbid to play, to save power, say: frames then come by seeks. Other refusals are our own pause(). */
  refused(error) {
    if (error.name === "NotAllowedError") this.seeksOnly = true;
  }

  halt() {
    if (!this.video.paused) this.video.pause();
  }

  destroy() {
    this.abort.abort();
    clearTimeout(this.timer);
    this.video.cancelVideoFrameCallback?.(this.callback);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
    if (this.address) URL.revokeObjectURL(this.address);
    this.store?.clear();
    this.waiting.clear();
  }
}
