// ComfyUI extension: the comparison node shows both its videos in a player of its own.

import { Comparison, NODE, equip, showOutputs } from "./compare_node.js";
import { createPlayer } from "./player.js";

// ComfyUI serves this file from /extensions/<name of the pack's folder>/; how deep, the pack's web directory decides.
const [root] = import.meta.url.split("/extensions/");
const [{ app }, { api }] = await Promise.all([import(`${root}/scripts/app.js`), import(`${root}/scripts/api.js`)]);

const apiURL = (route) => api.apiURL(route);

function look() {
  const setting = (name) => app.extensionManager?.setting?.get(name);
  const palette = String(setting("Comfy.ColorPalette") ?? "dark");
  const dark = document.body.classList.contains("dark-theme") || !palette.includes("light");
  return { locale: setting("Comfy.Locale"), theme: dark ? "dark" : "light" };
}

app.registerExtension({
  name: "sedialect.compare",
  nodeCreated(node) {
    if (node.comfyClass === NODE) equip(node, new Comparison(document, { createPlayer, look }), apiURL);
  },
  onNodeOutputsUpdated(outputs) {
    if (app.isGraphReady !== false) showOutputs(app.rootGraph ?? app.graph, outputs, apiURL);
  },
});
