import assert from "node:assert/strict";
import test from "node:test";

import { BUTTON, decided, equipFold, turn } from "../../web/js/node_fold.js";
import { wordsFor } from "../../web/js/node_words.js";

const widget = (name, value, advanced) => ({ name, value, options: { advanced } });

function nodeOf(...widgets) {
  return {
    widgets,
    inputs: [{ name: "model", link: 1 }, { name: "skip", widget: { name: "skip" }, link: null }],
    size: [300, 900],
    showAdvanced: false,
    addWidget(type, name, value, callback, options) {
      const made = { type, name, value, callback, options };
      this.widgets.push(made);
      return made;
    },
    computeSize() {
      return [200, 40 + 20 * this.widgets.filter((one) => !one.hidden).length];
    },
    setSize(size) {
      this.size = size;
    },
  };
}

const quantize = () => nodeOf(widget("preset", "auto"), widget("precision", "preset"), widget("rotation", "preset", true), widget("skip", "", true));

test("advanced settings are hidden on the canvas, and a button shows them", () => {
  const node = quantize();
  equipFold(node, wordsFor("en"));
  const [preset, precision, rotation, skip, button] = node.widgets;
  assert.deepEqual([preset.hidden, precision.hidden, rotation.hidden, skip.hidden], [undefined, undefined, true, true]);
  assert.deepEqual([button.name, button.label, button.serialize, button.options.canvasOnly], [BUTTON, "More settings", false, true]);
  assert.deepEqual(node.size, [300, 100], "folded, the node is as high as what is left");
  button.callback();
  assert.deepEqual([rotation.hidden, skip.hidden, button.label], [false, false, "Fewer settings"]);
  assert.deepEqual(node.size, [300, 140]);
  turn(node);
  assert.deepEqual(node.size, [300, 100]);
});

test("Nodes 2.0 folds by itself, by what the server said: that stays as it is", () => {
  const node = quantize();
  equipFold(node, wordsFor("en"));
  assert.equal(node.widgets[2].options.advanced, true);
  assert.equal(node.widgets[2].options.hidden, undefined);
});

test("a saved workflow opens where a folded setting decides something", () => {
  for (const [change, open] of [
    [() => {}, false],
    [(node) => (node.widgets[2].value = "64"), true],
    [(node) => (node.widgets[0].value = "compact"), false],
    [(node) => (node.inputs[1].link = 7), true],
  ]) {
    const node = quantize();
    equipFold(node, wordsFor("en"));
    change(node);
    if (!open) node.size = [300, 500];
    node.onConfigure({});
    assert.equal(Boolean(node.showAdvanced), open);
    assert.equal(node.size[1], 100, "no room is left for what is folded");
  }
  const node = quantize();
  node.widgets[3].value = "ffn";
  assert.deepEqual(decided(node, { rotation: "preset", skip: "" }), ["skip"]);
});

test("a node without such settings is left alone", () => {
  const node = nodeOf(widget("names", "ComfyUI"));
  equipFold(node, wordsFor("en"));
  assert.equal(node.widgets.length, 1);
});
