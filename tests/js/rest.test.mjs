import assert from "node:assert/strict";
import test from "node:test";

import { Comparison, comparisons, equip, nodeAt, playerOptions, showOutputs } from "../../web/js/compare_node.js";
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

const apiURL = (route) => `/proxy/api${route}`;
const file = (filename) => ({ filename, subfolder: "a b", type: "temp" });
const message = (name = "x.mp4") => ({
  sedialect_compare: [
    {
      left: file("l&.mp4"),
      right: file(name),
      labels: ["16 bit", "4 bit"],
      fps: 16,
      frames: 2,
      series: [{ name: "PSNR", unit: "dB", values: [1, 2] }],
    },
  ],
});

test("addresses go through ComfyUI's own, with names escaped", () => {
  const options = playerOptions(message(), apiURL);
  assert.equal(options.left.src, "/proxy/api/view?filename=l%26.mp4&subfolder=a+b&type=temp");
  assert.deepEqual([options.right.label, options.fps, options.frames, options.series.length], ["4 bit", 16, 2, 1]);
  for (const nothing of [
    undefined,
    {},
    { images: [] },
    { sedialect_compare: [] },
    { sedialect_compare: [{ left: file("a") }] },
  ]) {
    assert.equal(playerOptions(nothing, apiURL), null);
  }
});

/** Just enough of a document for the element that a node carries. */
function fakeDocument() {
  const element = () => ({
    style: {},
    dataset: {},
    children: [],
    heard: [],
    ownerDocument: document,
    removed: false,
    addEventListener(name) {
      this.heard.push(name);
    },
    replaceChildren(...all) {
      this.children = all;
    },
    remove() {
      this.removed = true;
    },
  });
  const document = {
    createElement: element,
    defaultView: { matchMedia: () => ({ matches: document.still }) },
    still: false,
  };
  return document;
}

function fakeNode(document, id, log) {
  const createPlayer = (element, options) => {
    log.push(["create", id, options.right.src]);
    return {
      load: (next) => log.push(["load", id, next.right.src]),
      play: () => log.push(["play", id]),
      destroy: () => log.push(["destroy", id]),
    };
  };
  const node = {
    id,
    size: [200, 900],
    widgets: [],
    addDOMWidget(...all) {
      this.widgets.push(all);
    },
    setSize(size) {
      this.size = size;
    },
  };
  node.onExecuted = () => log.push(["own", id]);
  equip(node, new Comparison(document, { createPlayer, look: () => ({ locale: "en", theme: "dark" }) }), apiURL);
  return node;
}

test("a node shows what it made, again without a second player, and leaves nothing", () => {
  const [log, document] = [[], fakeDocument()];
  const node = fakeNode(document, 1, log);
  assert.deepEqual(node.size, [440, 900]);
  assert.equal(node.widgets[0][3].serialize, false);
  const element = node.widgets[0][2];
  assert.equal(element.children[0].textContent, LABELS.en.empty);
  node.onExecuted(message("one.mp4"));
  node.onExecuted(message("one.mp4"));
  node.onExecuted(message("two.mp4"));
  node.onRemoved();
  assert.deepEqual(
    log.map(([what]) => what),
    ["own", "create", "play", "own", "load", "play", "own", "load", "play", "destroy"],
  );
  assert.equal(element.removed, true);
});

test("nothing moves by itself for those who asked for less motion", () => {
  const [log, document] = [[], fakeDocument()];
  document.still = true;
  fakeNode(document, 1, log).onExecuted(message());
  assert.deepEqual(
    log.map(([what]) => what),
    ["own", "create"],
  );
});

test("another workflow's outputs reach their nodes, in sub-graphs too, and the others go back to the hint", () => {
  const [log, document] = [[], fakeDocument()];
  const graph = (...nodes) => ({
    nodes,
    getNodeById: (id) => nodes.find((node) => node.id === id),
    subgraphs: new Map(),
  });
  const [first, second, inner] = [1, 2, 7].map((id) => fakeNode(document, id, log));
  const root = graph(first, second, { id: 3 });
  root.subgraphs.set("some-id", graph(inner));
  assert.equal(comparisons(root).length, 3);
  assert.equal(nodeAt(root, "some-id:7"), inner);
  assert.equal(nodeAt(root, "gone:7"), undefined);
  second.onExecuted(message("old.mp4"));
  inner.onExecuted(message("b.mp4"));
  log.length = 0;
  showOutputs(root, { 1: message("a.mp4"), "some-id:7": message("b.mp4"), 3: { images: [] }, 99: {} }, apiURL);
  assert.deepEqual(
    log.map(([what, id]) => `${what} ${id}`).sort(),
    ["create 1", "destroy 2"],
    "what is shown already stays",
  );
  showOutputs(undefined, undefined, apiURL);
});
