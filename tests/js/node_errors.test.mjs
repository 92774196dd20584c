import assert from "node:assert/strict";
import test from "node:test";

import { failure, refusals, watchRefusals } from "../../web/js/node_errors.js";

test("what our nodes and layers fail for is told in their sentence, others' errors are not ours", () => {
  assert.equal(failure({ node_type: "SeDialectQuantize", exception_message: "load 16 bit\n" }), "load 16 bit");
  assert.equal(failure({ node_type: "KSampler", exception_type: "x.sedialect.errors.ModelError", exception_message: "a" }), "a");
  assert.equal(failure({ node_type: "KSampler", exception_type: "RuntimeError", exception_message: "a" }), null);
  assert.equal(failure({ node_type: "SeDialectSave", exception_message: "" }), null);
  assert.equal(failure(), null);
});

const refused = (input, sentence) => ({
  type: "custom_validation_failed",
  details: `${input} - ${sentence}`,
  extra_info: { input_name: input },
});

test("a refusal is told once, without ComfyUI's name of the input before it", () => {
  const answer = {
    3: { class_type: "SeDialectSave", errors: [refused("filename_prefix", "it leads out"), refused("names", "it leads out")] },
    4: { class_type: "SeDialectLoad", errors: [{ type: "value_not_in_list", details: "file" }] },
    5: { class_type: "KSampler", errors: [refused("seed", "no")] },
  };
  assert.deepEqual(refusals(answer), ["it leads out"]);
  assert.deepEqual(refusals(null), []);
});

test("the answer to a run is waited for, and an old one not told again", () => {
  const old = { 3: { class_type: "SeDialectSave", errors: [refused("a", "old")] } };
  const fresh = { 3: { class_type: "SeDialectSave", errors: [refused("a", "new")] } };
  const runs = [
    { answers: [old, old, null, fresh, fresh], over: () => false, told: ["new"], looks: 3 },
    { answers: [old, old, old], over: () => true, told: [], looks: 1 },
  ];
  for (const run of runs) {
    const told = [];
    let looked = -1, tick = null, cleared = false;
    const timers = { setInterval: (act) => ((tick = act), 7), clearInterval: (timer) => (cleared = timer === 7) };
    watchRefusals(() => run.answers[++looked], run.over, (said) => told.push(said), timers);
    for (let count = 0; count < 9 && !cleared; count += 1) tick();
    assert.deepEqual(told, run.told);
    assert.equal(looked, run.looks);
  }
});
