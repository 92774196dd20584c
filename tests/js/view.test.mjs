import assert from "node:assert/strict";
import test from "node:test";

import {
  LARGEST_ZOOM,
  NO_ZOOM,
  contain,
  draw,
  drawDifference,
  heightFor,
  layout,
  panBy,
  panesOf,
  place,
  zoomAt,
} from "../../web/js/player_view.js";

const PANE = { x: 10, y: 20, width: 600, height: 400 };
const near = (a, b, what) => assert.ok(Math.abs(a - b) < 1e-6, `${what}: ${a} is not ${b}`);

test("a video keeps its shape and stays inside its pane", () => {
  for (const aspect of [0.5, 1, 16 / 9, 4]) {
    const rect = contain(PANE, aspect);
    near(rect.width / rect.height, aspect, "aspect");
    assert.ok(rect.width <= 600 + 1e-9 && rect.height <= 400 + 1e-9);
    near(rect.x + rect.width / 2, 310, "centre");
  }
});

test("side by side goes above each other where the pictures get larger by it", () => {
  const wide = panesOf("side", 1000, 300, 16 / 9);
  assert.equal(wide[0].y, wide[1].y);
  const tall = panesOf("side", 340, 400, 16 / 9);
  assert.equal(tall[0].x, tall[1].x);
  assert.ok(tall[0].y + tall[0].height <= tall[1].y);
  assert.equal(panesOf("wipe", 340, 400, 1).length, 1);
  const height = heightFor("side", 360, 16 / 9);
  near(contain(panesOf("side", 360, height, 16 / 9)[0], 16 / 9).width, 360, "width on a phone");
});

test("zooming keeps the point under the pointer", () => {
  const point = { x: 250, y: 180 };
  const before = place(PANE, 1.5, NO_ZOOM);
  const zoom = zoomAt(PANE, 1.5, NO_ZOOM, point, 3);
  const after = place(PANE, 1.5, zoom);
  near((point.x - after.x) / after.width, (point.x - before.x) / before.width, "x in the video");
  near((point.y - after.y) / after.height, (point.y - before.y) / before.height, "y in the video");
});

test("zoom has bounds, and out again is where it began", () => {
  let zoom = NO_ZOOM;
  for (let step = 0; step < 50; step++) zoom = zoomAt(PANE, 1.5, zoom, { x: 11, y: 21 }, 1.5);
  assert.equal(zoom.scale, LARGEST_ZOOM);
  for (let step = 0; step < 50; step++) zoom = zoomAt(PANE, 1.5, zoom, { x: 600, y: 400 }, 0.5);
  assert.deepEqual(zoom, NO_ZOOM);
});

test("panning cannot leave a margin that the video could fill", () => {
  for (const [dx, dy] of [
    [1e5, 1e5],
    [-1e5, -1e5],
    [37, -1e5],
  ]) {
    const rect = place(PANE, 1.5, panBy(PANE, 1.5, { scale: 4, x: 0.5, y: 0.5 }, dx, dy));
    assert.ok(rect.x <= PANE.x + 1e-9 && rect.x + rect.width >= PANE.x + PANE.width - 1e-9);
    assert.ok(rect.y <= PANE.y + 1e-9 && rect.y + rect.height >= PANE.y + PANE.height - 1e-9);
  }
  const rect = place(PANE, 1.5, { scale: 4, x: 0.5, y: 0.5 });
  near(place(PANE, 1.5, panBy(PANE, 1.5, { scale: 4, x: 0.5, y: 0.5 }, 12, -7)).x, rect.x + 12, "moved by as much");
});

test("the divider crosses the picture, not the margins beside it", () => {
  const at = (divider) =>
    layout({ mode: "wipe", width: 1000, height: 400, aspect: 1, zoom: NO_ZOOM, divider }).dividerX;
  assert.deepEqual([at(0), at(0.5), at(1)], [300, 500, 700]);
});

/** A context that remembers each picture drawn, with its clip. */
function recorder() {
  const calls = [];
  const ctx = {
    clip: () => {},
    save: () => {},
    restore: () => {},
    beginPath: () => {},
    setTransform: () => {},
    clearRect: () => {},
  };
  ctx.rect = (...box) => (ctx.box = box);
  ctx.drawImage = (what, ...rect) => calls.push({ what, rect, box: ctx.box, operation: ctx.globalCompositeOperation });
  return { ctx, calls };
}

test("a wipe draws each side on its own half, both at the same place", () => {
  const { ctx, calls } = recorder();
  const view = { mode: "wipe", width: 800, height: 400, aspect: 2, zoom: NO_ZOOM, divider: 0.25, ratio: 2, gain: 1 };
  draw(ctx, view, layout(view), ["left", "right"]);
  const [left, right] = calls;
  assert.deepEqual([left.what, right.what], ["left", "right"]);
  assert.deepEqual(left.rect, right.rect);
  assert.deepEqual(left.box, [0, 0, 200, 400]);
  assert.deepEqual(right.box, [200, 0, 600, 400]);
});

test("a difference of gain 2^n is doubled n times", () => {
  for (const [gain, doublings] of [
    [1, 0],
    [2, 1],
    [16, 4],
  ]) {
    const { ctx, calls } = recorder();
    const scratch = { width: 0, height: 0, getContext: () => ctx };
    drawDifference(scratch, { width: 40, height: 30 }, { width: 20, height: 15 }, gain);
    assert.deepEqual(
      calls.slice(0, 2).map(({ operation, rect }) => [operation, ...rect]),
      [
        ["copy", 0, 0, 40, 30],
        ["difference", 0, 0, 40, 30],
      ],
    );
    assert.equal(calls.filter(({ operation }) => operation === "lighter").length, doublings);
  }
});
