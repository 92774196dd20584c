// One clock for both videos, and the rules by which two media elements supply it with frames. No DOM in here.
//
// The clock says which frame is due. A frame is shown only when both sides have it, so the two pictures never differ in
// time, whatever the media elements do. They are mere suppliers: each plays or jumps to frames that are still missing,
// and short clips end up wholly in memory, from where every speed, loop and scrub is exact at once.

/** Frames the clock may run past the newest pair before it waits for the videos. */
export const LEASH = 2;
/** How far ahead pairs are looked for. */
const REACH = 16;
const LONGEST_STEP_MS = 250;

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Steps forward from one frame to another on the loop. */
export const ahead = (from, to, frames) => (((to - from) % frames) + frames) % frames;

export class FrameClock {
  constructor(frames, fps) {
    Object.assign(this, { frames, fps, position: 0, speed: 1, loop: true, running: false, last: 0 });
  }

  start(now) {
    if (this.position >= this.frames - 1 && !this.loop) this.position = 0;
    this.running = true;
    this.last = now;
  }

  stop() {
    this.running = false;
  }

  seek(frame) {
    this.position = clamp(frame, 0, this.frames - 1);
  }

  /** Move on to `now` (ms), not past `limit` (frames, may exceed the clip where it loops). Returns the frame that is due. */
  advance(now, limit = Infinity) {
    if (this.running) {
      const step = (clamp(now - this.last, 0, LONGEST_STEP_MS) / 1000) * this.fps * this.speed;
      this.position = Math.max(this.position, Math.min(this.position + step, limit));
      this.last = now;
      if (this.position >= this.frames) this.turn();
    }
    return Math.floor(this.position);
  }

  turn() {
    if (this.loop) {
      this.position %= this.frames;
    } else {
      this.position = this.frames - 1;
      this.running = false;
    }
  }
}

/** How far the clock may go: to the farthest pair within reach, or a little past the frame that is shown. */
export function leash(shown, hasPair, frames, loop) {
  const last = loop ? shown + Math.min(REACH, frames - 1) : Math.min(shown + REACH, frames - 1);
  for (let index = last; index > shown; index--) {
    if (hasPair(index % frames)) return Math.max(index + 1, shown + LEASH);
  }
  return shown + LEASH;
}

/** The newest frame up to `due` that both sides have; `shown` where there is none since. */
export function newestPair(shown, due, hasPair, frames) {
  for (let back = 0, steps = ahead(shown, due, frames); back < steps; back++) {
    const index = (due - back + frames) % frames;
    if (hasPair(index)) return index;
  }
  return shown;
}

function firstMissing(from, count, has, frames) {
  for (let step = 0; step < count; step++) {
    const index = (from + step) % frames;
    if (!has(index)) return index;
  }
  return -1;
}

/**
 * What a media element that stands at frame `head` does next, for a clock at frame `due`:
 * "halt", "run", or the number of a frame to jump to.
 *
 * Missing frames that the clock needs soon come first. Behind those, holes anywhere in the clip are filled where the
 * whole clip fits (`room` is Infinity), else only frames less than `room` ahead of the clock. `jump` is the longest gap
 * that is played through rather than jumped over; a negative one asks for jumps alone.
 */
export function supply({ due, head, has, frames, room, jump }) {
  const soon = Math.min(8, room, frames);
  const lead = ahead(due, head, frames);
  const decide = (missing) => (ahead(head, missing, frames) <= jump ? "run" : missing);
  const near = firstMissing(due, soon, has, frames);
  if (near >= 0) return lead <= soon && jump >= 0 ? "run" : decide(near);
  const next = firstMissing(head % frames, Math.min(frames, Math.max(0, room - lead)), has, frames);
  return next < 0 ? "halt" : decide(next);
}

/** The frames that one side has in memory, at most `capacity`; images have a close(). The first `pinned` stay, for loops. */
export class FrameStore {
  constructor(frames, capacity) {
    this.frames = frames;
    this.capacity = Math.min(frames, capacity);
    this.pinned = this.capacity < frames ? Math.min(8, Math.floor(this.capacity / 3)) : frames;
    this.images = new Map();
  }

  has(index) {
    return this.images.has(index);
  }

  get(index) {
    return this.images.get(index);
  }

  /** Frames that may be fetched ahead of the clock. */
  get room() {
    return this.capacity >= this.frames ? Infinity : this.capacity - this.pinned - 2;
  }

  /** Keep an image; what lies farthest ahead of frame `due` on the loop, that is just behind it, makes room. */
  put(index, image, due) {
    this.images.get(index)?.close();
    this.images.set(index, image);
    while (this.images.size > this.capacity) this.drop(due, index);
  }

  drop(due, fresh) {
    let worst = -1;
    for (const index of this.images.keys()) {
      if (index < this.pinned || index === fresh) continue;
      if (worst < 0 || ahead(due, index, this.frames) > ahead(due, worst, this.frames)) worst = index;
    }
    this.images.get(worst)?.close();
    this.images.delete(worst);
  }

  clear() {
    for (const image of this.images.values()) image.close();
    this.images.clear();
  }
}

/** Frames a side may keep when two sides of width x height share `budget` bytes. */
export function capacityFor(width, height, budget) {
  return Math.max(12, Math.floor(budget / 2 / (width * height * 4)));
}
