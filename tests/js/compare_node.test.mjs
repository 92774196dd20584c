import assert from "node:assert/strict";
import test from "node:test";

import { Comparison, comparisons, equip, nodeAt, playerOptions, showOutputs } from "../../web/js/compare_node.js";
import { LABELS } from "../../web/js/player_labels.js";

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
