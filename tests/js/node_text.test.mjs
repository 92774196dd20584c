import assert from "node:assert/strict";
import test from "node:test";

import { endProgress, equipText, noteHeight, textOf } from "../../web/js/node_text.js";
import { LANGUAGES, wordsFor } from "../../web/js/node_words.js";

const document = {
  createElement: () => ({ style: {}, dataset: {}, heard: [], setAttribute() {}, addEventListener(name) { this.heard.push(name); } }),
};

function nodeOf(comfyClass) {
  return {
    comfyClass,
    title: comfyClass,
    size: [200, 100],
    widgets: [],
    addDOMWidget(name, type, element, options) {
      const widget = { name, type, element, options };
      this.widgets.push(widget);
      return widget;
    },
    removeWidget(widget) {
      this.widgets.splice(this.widgets.indexOf(widget), 1);
    },
    computeSize() {
      return [150, 40 + this.widgets.reduce((sum, widget) => sum + (widget.options?.getMinHeight?.() ?? 20), 0)];
    },
    setSize(size) {
      this.size = size;
    },
  };
}

test("a report stands on its node: a hint at first, then what each run sends", () => {
  const node = nodeOf("SeDialectReport");
  equipText(node, document, wordsFor("en"));
  const [widget] = node.widgets;
  assert.match(widget.element.placeholder, /report appears here/);
  assert.ok(node.size[0] >= 500 && node.size[1] >= 400, "room for a table");
  node.onExecuted({ text: ["layers  80 in w4a4"] });
  assert.equal(widget.element.value, "layers  80 in w4a4");
  node.sedialectText.show("");
  assert.equal(widget.element.value, "");
  assert.equal(node.widgets.length, 1);
});

test("other nodes get a box with their first text, and room for it; a workflow keeps neither", () => {
  const node = nodeOf("SeDialectSave");
  let told = 0;
  node.onExecuted = () => (told += 1);
  equipText(node, document, wordsFor("en"));
  assert.equal(node.widgets.length, 0);
  node.onExecuted({ text: ["saved /a/long/path/of/a/file.safetensors"] });
  assert.equal(told, 1, "what ComfyUI does with the message is done too");
  const [widget] = node.widgets;
  assert.equal(widget.serialize, false);
  assert.equal(widget.options.serialize, false);
  assert.equal(widget.options.getValue(), "");
  assert.ok(node.size[1] >= 40 + widget.options.getMinHeight());
  node.sedialectText.show("");
  assert.equal(node.widgets.length, 0);
});

test("only texts are shown, and a message may hold none", () => {
  assert.equal(textOf(undefined), "");
  assert.equal(textOf({ images: [{}] }), "");
  assert.equal(textOf({ text: ["a", 3, "b"] }), "a\nb");
  assert.equal(textOf({ text: "a" }), "a");
});

test("a sentence takes the lines that it breaks into", () => {
  const [one, two] = [noteHeight("short", 300), noteHeight("short words that need a second line in this node, or more", 300)];
  assert.ok(two > one);
  assert.equal(noteHeight("a\nb", 300), noteHeight(`a ${"b".repeat(36)}`, 300), "a long word begins a line of its own");
  assert.equal(noteHeight("a\n".repeat(99), 300), noteHeight("a\n".repeat(50), 300), "then it scrolls");
});

test("ComfyUI's line of progress goes with the run, and the node is as high as before", () => {
  const node = nodeOf("SeDialectSave");
  node.widgets.push({ name: "names" }, { name: "$$node-text-preview", options: { getMinHeight: () => 58 } });
  node.size = [200, 220];
  endProgress(node, 120);
  assert.deepEqual(node.widgets.map((widget) => widget.name), ["names"]);
  assert.deepEqual(node.size, [200, 120]);
  endProgress(node, 90);
  assert.deepEqual(node.size, [200, 120], "a node without such a line is left alone");
});

test("every language says the same things, and others speak English", () => {
  const keys = Object.keys(wordsFor("en")).sort();
  for (const language of LANGUAGES) assert.deepEqual(Object.keys(wordsFor(language)).sort(), keys);
  assert.equal(wordsFor("fr"), wordsFor("en"));
  assert.equal(wordsFor("zh-TW"), wordsFor("zh"));
  assert.equal(wordsFor(undefined), wordsFor("en"));
});
