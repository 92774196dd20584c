// Settings that a node folds away. Nodes 2.0 folds inputs that are marked as advanced by itself; the canvas draws them all, so
// there they are hidden while the node's `showAdvanced` is off, and a button turns it. Needs no running ComfyUI.

export const BUTTON = "sedialect_more";

const isFolded = (widget) => Boolean(widget.options?.advanced);
const isLinked = (node, widget) => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);

/** Names of the folded settings that decide something: they hold another value than a new node's, or are linked. */
export function decided(node, defaults) {
  return (node.widgets ?? [])
    .filter(isFolded)
    .filter((widget) => widget.value !== defaults[widget.name] || isLinked(node, widget))
    .map((widget) => widget.name);
}

/** Fold a new node; saved ones open where a folded setting decides something. */
export function equipFold(node, words) {
  const folded = (node.widgets ?? []).filter(isFolded);
  if (!folded.length) return;
  const defaults = Object.fromEntries(folded.map((widget) => [widget.name, widget.value]));
  for (const widget of folded) {
    Object.defineProperty(widget, "hidden", { configurable: true, get: () => !node.showAdvanced, set: () => {} });
  }
  const button = node.addWidget("button", BUTTON, null, () => turn(node), { serialize: false, canvasOnly: true });
  button.serialize = false;
  Object.defineProperty(button, "label", {
    configurable: true,
    get: () => (node.showAdvanced ? words.fewer : words.more),
    set: () => {},
  });
  const before = node.onConfigure;
  node.onConfigure = function (...args) {
    const result = before?.apply(this, args);
    if (decided(node, defaults).length) node.showAdvanced = true;
    else if (!node.showAdvanced && !node.sedialectText?.table) fit(node); // it may have been saved with all of them in view
    return result;
  };
  fit(node);
}

/** Fold or unfold, and give the node the height of what is left. */
export function turn(node) {
  node.showAdvanced = !node.showAdvanced;
  fit(node);
}

function fit(node) {
  const size = node.computeSize?.();
  if (size) node.setSize?.([Math.max(node.size?.[0] ?? 0, size[0]), size[1]]);
  node.setDirtyCanvas?.(true, true);
}
