import assert from "node:assert/strict";
import test from "node:test";

import { optionsFault } from "../../web/js/player.js";
import { keyAction, movedDivider } from "../../web/js/player_keys.js";
import { LABELS, fill, labelsFor } from "../../web/js/player_labels.js";
import { frameAlong, pathOf, rangeOf, seriesFault, short, up } from "../../web/js/player_plot.js";
import { frameAt, middleOf } from "../../web/js/player_source.js";

test("keys do what the control in focus leaves to the player", () => {
  const press = (key, target = "other", extra = {}) => keyAction({ key, ...extra }, target);
  assert.equal(press(" "), "toggle");
  assert.equal(press(" ", "button"), null, "a button is pressed by the space bar");
  assert.equal(press("ArrowRight"), "next");
  assert.equal(press("ArrowRight", "divider"), "dividerRight");
  assert.equal(press("ArrowDown", "select"), null);
  assert.equal(press("L"), "loop");
  assert.equal(press("2"), "side");
  assert.equal(press("+", "other", { ctrlKey: true }), null, "the browser's own zoom");
  for (const key of ["Tab", "Enter", "Escape", "constructor", "q"]) assert.equal(press(key), null, key);
});

test("the divider stays between the edges", () => {
  assert.equal(movedDivider(0.01, "dividerLeft"), 0);
  assert.equal(movedDivider(0.3, "dividerEnd"), 1);
  assert.ok(Math.abs(movedDivider(0.5, "dividerRight") - 0.52) < 1e-12);
});

test("a seek to a frame lands in that frame at every rate", () => {
  for (const fps of [8, 12.5, 16, 23.976, 24, 29.97, 30, 60]) {
    for (let frame = 0; frame < 200; frame++) assert.equal(frameAt(middleOf(frame, fps), fps), frame);
    for (let frame = 0; frame < 200; frame++) assert.equal(frameAt(Math.floor((frame / fps) * 1e6) / 1e6, fps), frame);
  }
});

test("faulty series are named", () => {
  const series = (values, name = "PSNR") => [{ name, unit: "dB", values }];
  assert.equal(seriesFault(series([1, 2, 3]), 3), null);
  assert.equal(seriesFault([], 3), null);
  assert.equal(seriesFault(series(new Float32Array(3)), 3), null);
  assert.match(seriesFault(series([1, 2]), 3), /"PSNR" has 2 values for 3 frames/);
  assert.match(seriesFault(series("abc"), 3), /"PSNR" has no list of values/);
  assert.match(seriesFault([{ values: [1] }], 1), /series 0 has no name/);
  assert.match(seriesFault({}, 1), /not a list/);
});

test("faulty options are named", () => {
  const good = { left: { src: "a" }, right: { src: "b" }, fps: 16, frames: 3 };
  assert.equal(optionsFault(good), null);
  assert.equal(optionsFault({ ...good, frames: undefined }), null);
  assert.match(optionsFault({ ...good, right: {} }), /address/);
  assert.match(optionsFault({ ...good, fps: 0 }), /fps is 0/);
  assert.match(optionsFault({ ...good, frames: 2.5 }), /frames is 2.5/);
  assert.match(optionsFault({ ...good, series: [{ name: "x", values: [] }] }), /0 values/);
  assert.match(optionsFault(undefined), /address/);
});

test("a path has a point for each number and a gap for each infinity", () => {
  const values = [1, 2, Infinity, 3, null, NaN, 5];
  const range = rangeOf(values);
  assert.deepEqual(range, { low: 1, high: 5 });
  const path = pathOf(values, range);
  assert.equal(path.match(/M/g).length, 3);
  assert.equal(path.match(/[ML][^ML]+/g).length, 4);
  assert.equal(path.match(/h/g).length, 2, "lonely values are seen");
  assert.equal(rangeOf([Infinity, null]), null);
  assert.equal(up(4, { low: 4, high: 4 }), 0.5);
  assert.equal(pathOf([7], rangeOf([7])).startsWith("M500.0,50.0"), true);
});

test("a place on a chart is the nearest frame", () => {
  assert.deepEqual(
    [0, 0.49, 0.51, 1, 7].map((place) => frameAlong(place, 3)),
    [0, 1, 1, 2, 2],
  );
  assert.equal(frameAlong(0.7, 1), 0);
});

test("numbers are short, and what is none says so", () => {
  assert.deepEqual([31.23456, 0.93217, 1234.56, 0.00001234, 0, Infinity, null, NaN].map(short), [
    "31.23",
    "0.9322",
    "1234.6",
    "1.2e-5",
    "0.0000",
    "\u221e",
    "\u2013",
    "\u2013",
  ]);
});

test("every language says everything, with the same values in it", () => {
  const holes = (text) => (text.match(/\{\w+\}/g) ?? []).sort().join();
  for (const [locale, labels] of Object.entries(LABELS)) {
    assert.deepEqual(Object.keys(labels), Object.keys(LABELS.en), locale);
    for (const name of Object.keys(labels))
      assert.equal(holes(labels[name]), holes(LABELS.en[name]), `${locale} ${name}`);
  }
  assert.equal(labelsFor("zh-TW").play, LABELS.zh.play);
  assert.equal(labelsFor("xx").play, "Play");
  assert.equal(labelsFor("ja", { play: "Los" }).play, "Los");
  assert.equal(fill("{a} of {b} {c}", { a: 1, b: 0 }), "1 of 0 {c}");
});
