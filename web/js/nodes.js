// ComfyUI extension: what our nodes say stands on them, and settings that few people change are folded away.

import { nodeAt } from "./compare_node.js";
import { failure, watchRefusals } from "./node_errors.js";
import { equipFold } from "./node_fold.js";
import { endProgress, equipText, textOf } from "./node_text.js";
import { wordsFor } from "./node_words.js";

const [root] = import.meta.url.split("/extensions/");
const [{ app }, { api }] = await Promise.all([import(`${root}/scripts/app.js`), import(`${root}/scripts/api.js`)]);

const OURS = "SeDialect";
const PLAYER = "SeDialectCompare"; // it has a player of its own

function ours() {
  const rootGraph = app.rootGraph ?? app.graph;
  const graphs = rootGraph ? [rootGraph, ...(rootGraph.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []).filter((node) => node.comfyClass?.startsWith(OURS));
}

const heights = new WeakMap();

function runBegins() {
  for (const node of ours()) heights.set(node, node.size[1]);
}

function runEnds() {
  for (const node of ours()) endProgress(node, heights.get(node) ?? node.size[1]);
}

function tell(detail) {
  app.extensionManager?.toast?.add({ severity: "error", summary: "SeDialect", detail, life: 30_000 });
}

function runAsked() {
  let begun = false;
  api.addEventListener("promptQueued", () => (begun = true), { once: true });
  const look = () => app.extensionManager?.lastNodeErrors ?? null;
  watchRefusals(look, () => begun, tell);
}

function runFails({ detail }) {
  const said = failure(detail);
  if (said) tell(said);
}

app.registerExtension({
  name: "sedialect.nodes",
  setup() {
    api.addEventListener("promptQueueing", runAsked);
    api.addEventListener("execution_error", runFails);
    api.addEventListener("execution_start", runBegins);
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, runEnds);
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS) || node.comfyClass === PLAYER) return;
    const words = wordsFor(app.extensionManager?.setting?.get("Comfy.Locale"));
    equipFold(node, words);
    equipText(node, document, words);
  },
  onNodeOutputsUpdated(outputs) {
    if (app.isGraphReady === false) return;
    for (const [locator, output] of Object.entries(outputs ?? {})) {
      nodeAt(app.rootGraph ?? app.graph, locator)?.sedialectText?.show(textOf(output));
    }
  },
});
