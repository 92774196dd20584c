import assert from "node:assert/strict";
import test from "node:test";

import {
  FrameClock,
  FrameStore,
  LEASH,
  ahead,
  capacityFor,
  leash,
  newestPair,
  supply,
} from "../../web/js/player_clock.js";

const clockAt = (frames, fps, settings = {}) => Object.assign(new FrameClock(frames, fps), settings);
const image = () => ({
  closed: 0,
  close() {
    this.closed++;
  },
});
const holding =
  (...indexes) =>
  (index) =>
    indexes.includes(index);

test("the clock counts frames of real time, whatever the screen's rate", () => {
  for (const hertz of [24, 60, 144]) {
    const clock = clockAt(1000, 16);
    clock.start(0);
    for (let tick = 1; tick <= hertz * 3; tick++) clock.advance((tick * 1000) / hertz);
    assert.ok(Math.abs(clock.position - 48) < 1e-6, `${hertz} Hz: ${clock.position}`);
  }
});

test("speed multiplies, a loop wraps, and without one the last frame stays", () => {
  const clock = clockAt(10, 10, { speed: 2 });
  clock.start(0);
  assert.equal(clock.advance(200), 4);
  assert.equal(clock.advance(400), 8);
  assert.equal(clock.advance(600), 2);
  clock.loop = false;
  clock.advance(800);
  assert.equal(clock.advance(1000), 9);
  assert.equal(clock.advance(1200), 9);
  assert.equal(clock.running, false);
  clock.start(2000);
  assert.equal(clock.position, 0, "started at the end, it starts over");
});

test("a tab that slept does not jump, and a clock is never set back", () => {
  const clock = clockAt(100, 10);
  clock.start(0);
  assert.equal(clock.advance(60_000), 2);
  assert.equal(clock.advance(60_100, 1), 2, "a limit behind the clock holds it");
  assert.equal(clock.advance(50_000), 2, "nor does time that runs backwards");
});

test("the last frame lasts as long as every other", () => {
  const clock = clockAt(3, 10, { loop: false });
  clock.start(0);
  assert.deepEqual(
    [50, 150, 250, 295].map((now) => clock.advance(now)),
    [0, 1, 2, 2],
  );
  assert.equal(clock.running, true);
  clock.advance(305);
  assert.equal(clock.running, false);
});

test("the leash reaches to the farthest pair, else a little past the picture", () => {
  assert.equal(leash(5, holding(), 100, true), 5 + LEASH);
  assert.equal(leash(5, holding(6, 7, 8, 9), 100, true), 10);
  assert.equal(leash(98, holding(99, 0, 1, 2), 100, true), 103);
  assert.equal(leash(98, holding(99, 0, 1, 2), 100, false), 100);
});

test("only frames that both sides have are shown, the newest first, never one that is not due", () => {
  assert.equal(newestPair(4, 8, holding(5, 6, 9), 100), 6);
  assert.equal(newestPair(4, 8, holding(4, 9), 100), 4);
  assert.equal(newestPair(98, 1, holding(99, 0), 100), 0);
  assert.equal(newestPair(-1, 0, holding(0), 100), 0, "the first picture of all");
});

test("a source plays towards near frames, jumps to far ones, and halts when nothing is missing", () => {
  const settings = { frames: 100, room: Infinity, jump: 10 };
  const missing =
    (...indexes) =>
    (index) =>
      !indexes.includes(index);
  assert.equal(supply({ ...settings, due: 0, head: 0, has: holding(0) }), "run");
  assert.equal(
    supply({ ...settings, due: 50, head: 3, has: holding(0, 1, 2, 3) }),
    50,
    "what the clock needs comes first",
  );
  assert.equal(
    supply({ ...settings, due: 50, head: 52, has: missing(51, 60) }),
    "run",
    "a hole just passed waits for the next round",
  );
  assert.equal(supply({ ...settings, due: 10, head: 20, has: missing(25) }), "run");
  assert.equal(supply({ ...settings, due: 10, head: 20, has: missing(90) }), 90);
  assert.equal(supply({ ...settings, due: 10, head: 20, has: missing(5) }), 5, "holes behind the head, too");
  assert.equal(supply({ ...settings, due: 10, head: 20, has: () => true }), "halt");
});

test("where a clip does not fit, a source stays within its room ahead of the clock", () => {
  const settings = { frames: 100, room: 12, jump: 10 };
  const from = (low, high) => (index) => index >= low && index <= high;
  assert.equal(supply({ ...settings, due: 30, head: 38, has: from(28, 38) }), "run");
  assert.equal(supply({ ...settings, due: 30, head: 42, has: from(28, 42) }), "halt");
  assert.equal(supply({ ...settings, due: 30, head: 90, has: from(28, 39) }), "halt");
  assert.equal(
    supply({ ...settings, due: 95, head: 100, has: (index) => index > 80 || index < 4 }),
    "run",
    "over the end of the loop",
  );
});

/** Two media elements that drop frames and seek slowly, in simulated time: what a visitor sees of them. */
function simulate({ frames, fps, dropped, seconds, seekMs = 80, capacity = frames, speed = 1 }) {
  const clock = clockAt(frames, fps, { speed });
  const sides = [0, 1].map((side) => ({
    store: new FrameStore(frames, capacity),
    time: side * 0.03,
    busy: 0,
    last: -1,
  }));
  for (const { store } of sides) store.put(0, image(), 0);
  const has = (index) => sides.every(({ store }) => store.has(index));
  const shown = [0];
  clock.start(0);
  for (let now = 1000 / 60; now < seconds * 1000; now += 1000 / 60) {
    const anchor = shown.at(-1);
    const before = Math.floor(clock.position);
    const allowed = leash(anchor, has, frames, true) - anchor - ahead(anchor, before, frames);
    const next = newestPair(anchor, clock.advance(now, before + allowed), has, frames);
    if (next !== anchor) shown.push(next);
    sides.forEach((side, number) => {
      if (now < side.busy) return;
      const head = Math.min(frames, Math.floor(side.time * fps));
      const keep = (index) => index < frames && side.store.put(index, image(), before);
      if (head !== side.last && !dropped(head, number, now)) keep(head);
      side.last = head;
      const order = supply({
        due: before,
        head,
        has: (index) => side.store.has(index),
        frames,
        room: side.store.room,
        jump: fps / 2,
      });
      if (order === "halt") return;
      if (order === "run" && head < frames) side.time += (speed * 1.1) / 60;
      else {
        const target = order === "run" ? 0 : order;
        Object.assign(side, { time: (target + 0.5) / fps, busy: now + seekMs, last: target });
        keep(target);
      }
    });
  }
  return { shown, clock, has };
}

test("smooth sources: every frame is shown, in order, in real time", () => {
  const { shown } = simulate({ frames: 33, fps: 16, dropped: () => false, seconds: 8 });
  for (let step = 1; step < shown.length; step++) assert.equal(shown[step], (shown[step - 1] + 1) % 33);
  assert.ok(shown.length > 8 * 16 * 0.93, `${shown.length} frames in 8 s at 16 fps`);
});

test("sources that drop every third frame, each another one: all holes are filled, later rounds are whole", () => {
  const { shown, has } = simulate({
    frames: 33,
    fps: 16,
    dropped: (index, side, now) => now < 4000 && index % 3 === side,
    seconds: 30,
  });
  assert.ok(Array.from({ length: 33 }, (_, index) => has(index)).every(Boolean));
  const later = shown.slice(-66);
  for (let step = 1; step < later.length; step++) assert.equal(later[step], (later[step - 1] + 1) % 33);
});

test("a clip that does not fit loops without a gap longer than a seek", () => {
  const { shown } = simulate({ frames: 120, fps: 24, dropped: () => false, seconds: 16, capacity: 30 });
  assert.ok(shown.length > 16 * 24 * 0.85, `${shown.length} frames in 16 s at 24 fps`);
  const steps = shown.slice(1).map((frame, place) => ahead(shown[place], frame, 120));
  assert.ok(Math.max(...steps) <= 3, `a step of ${Math.max(...steps)} frames`);
});

test("a store keeps to its capacity, keeps the first frames, and closes what it drops", () => {
  const store = new FrameStore(100, 12);
  const images = Array.from({ length: 60 }, image);
  images.forEach((one, index) => store.put(index, one, index));
  assert.equal(store.images.size, 12);
  for (let index = 0; index < store.pinned; index++) assert.ok(store.has(index));
  assert.ok(store.has(59) && !store.has(58), "on the loop, what was just shown is needed last");
  assert.equal(images.filter((one) => one.closed).length, 60 - 12);
  const again = image();
  store.put(59, again, 59);
  assert.equal(images[59].closed, 1, "a frame that comes again replaces the old one");
  store.clear();
  assert.ok([...images, again].every((one) => one.closed === 1));
});

test("memory decides how many frames are kept", () => {
  assert.equal(capacityFor(832, 480, 192 * 2 ** 20), 63);
  assert.ok(capacityFor(8192, 8192, 1) >= 12, "never so few that playing is impossible");
});
