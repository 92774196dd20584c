// Our nodes' errors as sentences for ComfyUI's toast: its own says no more than that a node failed, or that it rejected a value.
// Needs no running ComfyUI.

const OURS = "SeDialect";
const REFUSED = "custom_validation_failed";
const LOOK_EVERY = 200; // ms
const LOOK_FOR = 30_000; // ms

/** The sentence of a failed run, where one of our nodes or layers failed; else null. */
export function failure({ node_type = "", exception_type = "", exception_message = "" } = {}) {
  const ours = node_type.startsWith(OURS) || exception_type.includes("sedialect");
  return ours && exception_message.trim() ? exception_message.trim() : null;
}

/** Sentences of what our nodes refused before a run, each once. `nodeErrors`: by node, as the server answers. */
export function refusals(nodeErrors) {
  const found = Object.values(nodeErrors ?? {})
    .filter(({ class_type }) => class_type?.startsWith(OURS))
    .flatMap(({ errors }) => errors ?? [])
    .filter(({ type }) => type === REFUSED)
    .map(({ details = "", extra_info }) => details.replace(`${extra_info?.input_name} - `, ""));
  return [...new Set(found)];
}

/** Tell of refusals once the server has answered. `look()` gives what it said of nodes last, `over()` whether the run began. */
export function watchRefusals(look, over, tell, timers = globalThis) {
  const before = look();
  const end = LOOK_FOR / LOOK_EVERY;
  let looks = 0;
  const timer = timers.setInterval(() => {
    const now = look();
    looks += 1;
    const answered = now && now !== before;
    if (answered) refusals(now).forEach(tell);
    if (answered || over() || looks >= end) timers.clearInterval(timer);
  }, LOOK_EVERY);
}
