import assert from "node:assert/strict";
import { test } from "node:test";
import { Job } from "../../gen/foil/v1/jobs.js";
import { inputFiles, sources } from "../../src/model/data.js";

const A = "a".repeat(64);
const B = "b".repeat(64);

test("files have the order of the job file's fields, and the hashes of what was uploaded", () => {
  const job = Job.create({
    spec: {
      data: {
        prompts: [`input:${A}:a:b.jsonl`, "data/local.csv"],
        evaluation: { preferences: [], prompts: [`input:${B}:held.jsonl`] },
        sources: [{ set: "preferences", path: [`input:${A}:one.csv`, `input:${B}:two.csv`], columns: {}, limit: 0 }],
      },
    },
  });
  assert.deepEqual(inputFiles(job), [
    { set: "preferences", name: "one.csv", blake3: A },
    { set: "preferences", name: "two.csv", blake3: B },
    { set: "prompts", name: "a:b.jsonl", blake3: A },
    { set: "prompts", name: "data/local.csv", blake3: "" },
    { set: "evaluation_prompts", name: "held.jsonl", blake3: B },
  ]);
  assert.deepEqual(inputFiles(Job.create({})), []);
});

test("sources have their share of their set", () => {
  const job = Job.create({
    plan: {
      datasets: [
        { name: "golden", rows: 3n, sources: [{ name: "a", rows: 1n }, { name: "b", rows: 2n, weight: 0.5, dropped: [{ reason: "tie", rows: 4n }] }] },
        { name: "empty", rows: 0n, sources: [{ name: "c", rows: 0n }] },
      ],
    },
  });
  const found = sources(job).map(({ set, name, share, weight, dropped }) => [set, name, share, weight, dropped.length]);
  assert.deepEqual(found, [["golden", "a", 1 / 3, undefined, 0], ["golden", "b", 2 / 3, 0.5, 1], ["empty", "c", 0, undefined, 0]]);
});
