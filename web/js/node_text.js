// Text that a node shows of its last run: the report, where a file was saved, what to know of a quantized model. ComfyUI's own
// preview of text is drawn on a few of its nodes alone. Needs no running ComfyUI.

export const WIDGET = "sedialect_text";
const ALWAYS = { SeDialectReport: [560, 430], SeDialectFormatbook: [560, 430] }; // smallest sizes, px: they are made for their text
const TABLE_HEIGHT = 200; // of a text that is a table, px
const LINE = 17; // px
const PADDING = 38; // above and below a sentence, and around the box
const MOST_LINES = 8; // of a sentence, before it scrolls
const MARGIN = 20; // of the box, px
const CHARACTER = 7; // mean width in a sentence, px
const STYLE =
  "width:100%;height:100%;margin:0;padding:8px;box-sizing:border-box;resize:none;border:0;border-radius:8px;outline-offset:-2px;" +
  "background:var(--comfy-input-bg,#222);color:var(--input-text,#ddd)";
const TABLE = ";font:11px/1.45 ui-monospace,SFMono-Regular,Consolas,monospace;white-space:pre;overflow:auto";
const NOTE = ";font:12px/17px system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere;overflow:auto";

/** The text of what a node sent; "" where there is none. */
export function textOf(message) {
  const sent = message?.text;
  return (Array.isArray(sent) ? sent : [sent]).filter((part) => typeof part === "string").join("\n");
}

/** Height that a sentence takes in a node of this width: lines break between words, and inside those that are too long. */
export function noteHeight(text, width) {
  const letters = Math.max(20, Math.floor((width - 48) / CHARACTER));
  let lines = 0;
  for (const line of text.split("\n")) {
    let column = 0;
    lines += 1;
    for (const word of line.split(" ")) {
      if (column && column + 1 + word.length > letters) {
        lines += 1;
        column = 0;
      }
      lines += Math.max(0, Math.ceil(word.length / letters) - 1);
      column += (column ? 1 : 0) + (word.length % letters || word.length);
    }
  }
  return LINE * Math.min(lines, MOST_LINES) + PADDING;
}

/** The text box of one node: there from the beginning where the node is made for it, else from the first text on. */
export class NodeText {
  constructor(node, document, words, title) {
    Object.assign(this, { node, document, words, title, box: null, text: "" });
    this.hint = words[node.comfyClass] ?? "";
    this.table = node.comfyClass in ALWAYS;
    if (!this.table) return;
    const [width, height] = ALWAYS[node.comfyClass];
    this.open();
    node.setSize?.([Math.max(node.size?.[0] ?? 0, width), Math.max(node.size?.[1] ?? 0, height)]);
  }

  /** Show a text; "" brings the hint back, or takes the box away. */
  show(text) {
    if (text === this.text) return;
    this.text = text;
    if (text && !this.box) this.open();
    if (this.box) this.box.value = text;
    if (this.box && !this.table) this.box.style.minHeight = `${this.height() - MARGIN}px`; // Nodes 2.0 asks the element itself
    if (!text && !this.table) this.close();
  }

  height() {
    return this.table ? TABLE_HEIGHT : noteHeight(this.text, this.node.size?.[0] ?? 300);
  }

  open() {
    this.box = Object.assign(this.document.createElement("textarea"), {
      className: "sedialect-text",
      readOnly: true,
      spellcheck: false,
      placeholder: this.hint,
    });
    this.box.setAttribute("aria-label", this.words.text.replace("{title}", this.title));
    this.box.style.cssText = STYLE + (this.table ? TABLE : NOTE);
    this.box.dataset.captureWheel = "true"; // Nodes 2.0: the wheel scrolls the text while the focus is inside
    for (const name of ["pointerdown", "mousedown", "dblclick"])
      this.box.addEventListener(name, (event) => event.stopPropagation()); // selecting text does not drag the node
    const height = () => this.height();
    this.widget = this.node.addDOMWidget(WIDGET, "SEDIALECT_TEXT", this.box, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: height,
      ...(this.table ? {} : { getMaxHeight: height }),
      getValue: () => "",
      setValue: () => {},
    });
    this.widget.serialize = false; // a workflow keeps no reports
    this.grow();
  }

  close() {
    this.node.removeWidget?.(this.widget);
    this.box.remove?.();
    this.box = this.widget = null;
  }

  /** Make room for what the node holds now. */
  grow() {
    const [width, height] = this.node.computeSize?.() ?? [0, 0];
    const [wide, high] = this.node.size ?? [0, 0];
    if (width > wide || height > high) this.node.setSize?.([Math.max(width, wide), Math.max(height, high)]);
  }
}

/** Give a node its text, and have it shown whenever the node ran. */
export function equipText(node, document, words) {
  const text = new NodeText(node, document, words, node.title ?? node.comfyClass);
  node.sedialectText = text;
  const before = node.onExecuted;
  node.onExecuted = function (message, ...more) {
    const result = before?.apply(this, [message, ...more]);
    text.show(textOf(message));
    return result;
  };
}

const PROGRESS = "$$node-text-preview"; // ComfyUI's line of what a node does just now; it would stay when the node is done

/** Take the line of a finished run away, and the room that it took; `height` is the node's before the run. */
export function endProgress(node, height) {
  const line = node.widgets?.find((widget) => widget.name === PROGRESS);
  if (!line) return;
  node.removeWidget?.(line);
  const least = node.computeSize?.()[1] ?? 0;
  node.setSize?.([node.size[0], Math.max(least, Math.min(height, node.size[1]))]);
  node.setDirtyCanvas?.(true, true);
}
