// Where the pictures go on the stage, and how they are drawn there. Sizes are CSS pixels; no DOM in here.

import { clamp } from "./player_clock.js";

export const MODES = ["wipe", "side", "difference"];
export const GAINS = [1, 2, 4, 8, 16];
export const LARGEST_ZOOM = 16;
export const NO_ZOOM = Object.freeze({ scale: 1, x: 0.5, y: 0.5 });
const GAP = 2;
const SMOOTH_BELOW = 4; // from this zoom on, video pixels are shown as squares

/** The largest rectangle of an aspect ratio inside a pane, centred. */
export function contain(pane, aspect) {
  const width = Math.min(pane.width, pane.height * aspect);
  const height = width / aspect;
  return { x: pane.x + (pane.width - width) / 2, y: pane.y + (pane.height - height) / 2, width, height };
}

/** One pane for wipe and difference; two for side by side, above each other where that shows larger pictures. */
export function panesOf(mode, width, height, aspect) {
  if (mode !== "side") return [{ x: 0, y: 0, width, height }];
  const half = Math.max(1, (width - GAP) / 2);
  const beside = [
    { x: 0, y: 0, width: half, height },
    { x: half + GAP, y: 0, width: half, height },
  ];
  const tall = Math.max(1, (height - GAP) / 2);
  const above = [
    { x: 0, y: 0, width, height: tall },
    { x: 0, y: tall + GAP, width, height: tall },
  ];
  return contain(above[0], aspect).width > contain(beside[0], aspect).width ? above : beside;
}

/** Height that a stage of this width wants. Narrow stages put landscape pictures above each other. */
export function heightFor(mode, width, aspect) {
  if (mode !== "side") return width / aspect;
  return width < 560 && aspect > 1 ? (2 * width) / aspect + GAP : (width - GAP) / 2 / aspect;
}

/** Where a video lies for a zoom around its point (x, y) in 0..1; it never leaves a margin that it could fill. */
export function place(pane, aspect, zoom) {
  const base = contain(pane, aspect);
  const [width, height] = [base.width * zoom.scale, base.height * zoom.scale];
  const along = (start, room, size, centre) =>
    size <= room ? start + (room - size) / 2 : clamp(start + room / 2 - centre * size, start + room - size, start);
  return { x: along(pane.x, pane.width, width, zoom.x), y: along(pane.y, pane.height, height, zoom.y), width, height };
}

/** The part of a pane that the video covers. */
export function visible(pane, rect) {
  const [x, y] = [Math.max(pane.x, rect.x), Math.max(pane.y, rect.y)];
  const right = Math.min(pane.x + pane.width, rect.x + rect.width);
  const bottom = Math.min(pane.y + pane.height, rect.y + rect.height);
  return { x, y, width: Math.max(0, right - x), height: Math.max(0, bottom - y) };
}

const centred = (pane, rect, scale) => ({
  scale,
  x: clamp((pane.x + pane.width / 2 - rect.x) / rect.width, 0, 1),
  y: clamp((pane.y + pane.height / 2 - rect.y) / rect.height, 0, 1),
});

/** Zoom by a factor; what lies under the point stays there. */
export function zoomAt(pane, aspect, zoom, point, factor) {
  const scale = clamp(zoom.scale * factor, 1, LARGEST_ZOOM);
  const [before, grow] = [place(pane, aspect, zoom), scale / zoom.scale];
  const after = {
    x: point.x - (point.x - before.x) * grow,
    y: point.y - (point.y - before.y) * grow,
    width: before.width * grow,
    height: before.height * grow,
  };
  return scale === 1 ? NO_ZOOM : centred(pane, place(pane, aspect, centred(pane, after, scale)), scale);
}

/** Move the picture by (dx, dy). */
export function panBy(pane, aspect, zoom, dx, dy) {
  const rect = place(pane, aspect, zoom);
  const moved = { ...rect, x: rect.x + dx, y: rect.y + dy };
  return centred(pane, place(pane, aspect, centred(pane, moved, zoom.scale)), zoom.scale);
}

/** All rectangles of a picture, and the x of the wipe's divider. */
export function layout({ mode, width, height, aspect, zoom, divider }) {
  const panes = panesOf(mode, width, height, aspect);
  const rects = panes.map((pane) => place(pane, aspect, zoom));
  const area = visible(panes[0], rects[0]);
  return { panes, rects, area, dividerX: area.x + area.width * divider };
}

function drawClipped(ctx, image, clip, rect) {
  if (clip.width <= 0) return;
  ctx.save();
  ctx.beginPath();
  ctx.rect(clip.x, clip.y, clip.width, clip.height);
  ctx.clip();
  ctx.drawImage(image, rect.x, rect.y, rect.width, rect.height);
  ctx.restore();
}

/** |left - right| times `gain` (a power of two), in the left one's size. No pixel is read, so any origin will do. */
export function drawDifference(scratch, left, right, gain) {
  if (scratch.width !== left.width || scratch.height !== left.height) {
    [scratch.width, scratch.height] = [left.width, left.height];
  }
  const ctx = scratch.getContext("2d");
  const { width, height } = scratch;
  ctx.globalCompositeOperation = "copy";
  ctx.drawImage(left, 0, 0, width, height);
  ctx.globalCompositeOperation = "difference";
  ctx.drawImage(right, 0, 0, width, height);
  ctx.globalCompositeOperation = "lighter";
  for (let reached = 1; reached < gain; reached *= 2) ctx.drawImage(scratch, 0, 0);
  return scratch;
}

/** Draw a pair of images of the same frame. `ratio` is device pixels per CSS pixel. */
export function draw(ctx, { mode, width, height, ratio, zoom, gain, scratch }, shape, [left, right]) {
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  ctx.imageSmoothingEnabled = zoom.scale < SMOOTH_BELOW;
  ctx.imageSmoothingQuality = "high";
  const { panes, rects, dividerX } = shape;
  if (mode === "difference") {
    drawClipped(ctx, drawDifference(scratch, left, right, gain), panes[0], rects[0]);
  } else if (mode === "side") {
    [left, right].forEach((image, side) => drawClipped(ctx, image, panes[side], rects[side]));
  } else {
    drawClipped(ctx, left, { ...panes[0], width: dividerX - panes[0].x }, rects[0]);
    drawClipped(ctx, right, { ...panes[0], x: dividerX, width: panes[0].x + panes[0].width - dividerX }, rects[0]);
  }
}
