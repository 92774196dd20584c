// What the comparison node does, apart from ComfyUI: payloads to players, and one player per node. Needs no running ComfyUI.

import { labelsFor } from "./player_labels.js";

export const NODE = "SeDialectCompare";
export const PAYLOAD = "sedialect_compare";
const SMALLEST = [440, 520]; // of a new node, px
const LEAST_HEIGHT = 340; // of the player; below it the pictures would be thumbnails
const EMPTY =
  "display:grid;place-items:center;height:100%;min-height:120px;padding:16px;text-align:center;border-radius:10px;" +
  "border:1px dashed color-mix(in srgb, currentColor 28%, transparent);opacity:.7;font:13px system-ui,sans-serif";

/** Address of a file that a node named, through `apiURL`; the sub-folder and type are ComfyUI's. */
export function viewAddress({ filename, subfolder = "", type = "temp" }, apiURL) {
  return apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Options of the player for what the node sent; null where the message holds no comparison. */
export function playerOptions(message, apiURL) {
  const sent = message?.[PAYLOAD]?.[0];
  if (!sent?.left?.filename || !sent?.right?.filename) return null;
  const { left, right, labels = [], fps, frames, series = [] } = sent;
  const side = (file, label) => ({ src: viewAddress(file, apiURL), label });
  return { left: side(left, labels[0]), right: side(right, labels[1]), fps, frames, series };
}

/** Where the output with a locator ("7", or "<subgraph>:7") belongs in a graph; undefined where there is no such node. */
export function nodeAt(rootGraph, locator) {
  const parts = String(locator).split(":");
  const graph = parts.length > 1 ? rootGraph?.subgraphs?.get(parts.slice(0, -1).join(":")) : rootGraph;
  return graph?.getNodeById?.(Number(parts.at(-1))) ?? graph?.getNodeById?.(parts.at(-1));
}

/** All nodes of our kind, in sub-graphs too. */
export function comparisons(rootGraph) {
  const graphs = rootGraph ? [rootGraph, ...(rootGraph.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []).filter((node) => node.sedialectCompare);
}

/** The element inside a node: a hint until there is something to compare, then the player. `look()`: locale and theme. */
export class Comparison {
  constructor(document, { createPlayer, look }) {
    Object.assign(this, { createPlayer, look, player: null, shown: null });
    this.element = Object.assign(document.createElement("div"), { className: "sedialect-compare" });
    this.element.style.cssText = "width:100%;height:100%;min-width:0;box-sizing:border-box;overflow:hidden";
    this.element.dataset.captureWheel = "true"; // Nodes 2.0: the wheel is ours while the focus is inside
    // A press inside would else drag the node, and a double click open the node search.
    for (const name of ["pointerdown", "mousedown", "dblclick"])
      this.element.addEventListener(name, (event) => event.stopPropagation());
    this.hint();
  }

  hint() {
    const text = this.element.ownerDocument.createElement("div");
    text.style.cssText = EMPTY;
    text.textContent = labelsFor(this.look().locale).empty;
    this.element.replaceChildren(text);
  }

  /** Show the comparison of these options, or the hint for null. `play` starts it, unless the visitor wants no motion. */
  show(options, play = false) {
    const key = JSON.stringify(options);
    if (key === this.shown && !play) return; // a new run may have written other videos under the same names
    this.shown = key;
    if (!options) return this.clear();
    const given = { ...options, ...this.look(), fill: true };
    if (this.player) {
      this.player.load(given);
    } else {
      this.element.replaceChildren();
      this.player = this.createPlayer(this.element, given);
    }
    const still = this.element.ownerDocument.defaultView?.matchMedia?.("(prefers-reduced-motion: reduce)").matches;
    if (play && !still) this.player.play();
  }

  clear() {
    this.player?.destroy();
    this.player = null;
    this.hint();
  }

  destroy() {
    this.player?.destroy();
    Object.assign(this, { player: null, shown: null });
    this.element.remove();
  }
}

/** Give a node its comparison: the widget, and what happens when the node ran and when it goes. */
export function equip(node, comparison, apiURL) {
  node.sedialectCompare = comparison;
  node.addDOMWidget("comparison", "SEDIALECT_PLAYER", comparison.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => LEAST_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  node.setSize?.([Math.max(node.size?.[0] ?? 0, SMALLEST[0]), Math.max(node.size?.[1] ?? 0, SMALLEST[1])]);
  const after = (name, act) => {
    const before = node[name];
    node[name] = function (...args) {
      const result = before?.apply(this, args);
      act(...args);
      return result;
    };
  };
  after("onExecuted", (message) => comparison.show(playerOptions(message, apiURL), true));
  after("onRemoved", () => comparison.destroy());
}

/** Outputs were replaced as a whole (another workflow, an old run): every node shows its own again, or nothing. */
export function showOutputs(rootGraph, outputs, apiURL) {
  const found = new Map(Object.entries(outputs ?? {}).map(([locator, output]) => [nodeAt(rootGraph, locator), output]));
  for (const node of comparisons(rootGraph)) node.sedialectCompare.show(playerOptions(found.get(node), apiURL));
}
