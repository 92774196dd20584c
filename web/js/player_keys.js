// Which key does what, while the focus is inside a player. No DOM in here.

const ANYWHERE = {
  __proto__: null,
  k: "toggle",
  l: "loop",
  ",": "previous",
  ".": "next",
  1: "wipe",
  2: "side",
  3: "difference",
  "+": "zoomIn",
  "=": "zoomIn",
  "-": "zoomOut",
  0: "zoomReset",
};
const MOVING = {
  __proto__: null,
  ArrowLeft: "previous",
  ArrowRight: "next",
  Home: "first",
  End: "last",
  PageUp: "back",
  PageDown: "forward",
};
const DIVIDER = {
  __proto__: null,
  ArrowLeft: "dividerLeft",
  ArrowDown: "dividerLeft",
  ArrowRight: "dividerRight",
  ArrowUp: "dividerRight",
  Home: "dividerStart",
  End: "dividerEnd",
};

/**
 * The action of a key press, or null where the key is not ours. `target` is what has the focus: "divider", "button",
 * "select" or "other". Buttons keep the space bar, selects all their keys; presses with Ctrl, Alt or Meta are the browser's.
 */
export function keyAction({ key, ctrlKey, altKey, metaKey }, target) {
  if (ctrlKey || altKey || metaKey || target === "select") return null;
  if (key === " ") return target === "button" ? null : "toggle";
  if (target === "divider" && key in DIVIDER) return DIVIDER[key];
  return MOVING[key] ?? ANYWHERE[key.toLowerCase()] ?? null;
}

/** Where the divider goes on such an action. */
export function movedDivider(divider, action) {
  const moves = { dividerLeft: divider - 0.02, dividerRight: divider + 0.02, dividerStart: 0, dividerEnd: 1 };
  return Math.min(1, Math.max(0, moves[action]));
}
