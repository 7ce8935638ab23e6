import assert from "node:assert/strict";
import { test } from "node:test";
import { PhaseProgress } from "../../gen/foil/v1/jobs.js";
import { age, bytes, compact, counted, duration, estimate, fixed, tick, timeLeft } from "../../src/model/format.js";
import { progressText } from "../../src/model/job.js";
import { cut, visible } from "../../src/ui/text.js";

test("a rounded zero has no sign, and minus is a minus sign", () => {
  assert.deepEqual([fixed(-0.004, 2), fixed(-0.0051, 2), fixed(0, 1), fixed(NaN, 2), fixed(-Infinity, 1)], ["0.00", "−0.01", "0.0", "NaN", "−∞"]);
});

test("halves are rounded to even, as the command line rounds them", () => {
  // The results of Rust's `{:.N}`.
  const ties: [number, number, string][] = [[0.5625, 3, "0.562"], [0.0625, 3, "0.062"], [2.125, 2, "2.12"], [2.375, 2, "2.38"], [0.5, 0, "0"], [1.5, 0, "2"], [-0.125, 2, "−0.12"], [-0.5, 0, "0"]];
  for (const [value, digits, text] of ties) assert.equal(fixed(value, digits), text, `${value}`);
  // Doubles close to a half.
  const others: [number, number, string][] = [[0.5626, 3, "0.563"], [0.35, 1, "0.3"], [1.005, 2, "1.00"], [0.45, 1, "0.5"], [0.1875, 4, "0.1875"], [3, 1, "3.0"]];
  for (const [value, digits, text] of others) assert.equal(fixed(value, digits), text, `${value}`);
  assert.equal(bytes(1152), "1.12 KiB");
});

test("an estimate has two digits of its standard error", () => {
  assert.equal(estimate({ value: 0.75, se: 0.0204 }), "0.750 ± 0.020");
  assert.equal(estimate({ value: 12.345, se: 1.23 }), "12.3 ± 1.2");
  assert.equal(estimate({ value: 1234.5, se: 67 }), "1234 ± 67");
  assert.equal(estimate({ value: 6e-7, se: 2e-8 }), "6.00e−7 ± 2.00e−8");
  assert.equal(estimate({ value: 1, low: 0.925, high: 1 }), "1.000 [0.925, 1.000]");
  assert.equal(estimate({ value: 0.5 }), "0.5000");
});

test("ticks show what tells them apart and no more", () => {
  assert.deepEqual([0.025, 0.05, 0.075].map((value) => tick(value, 0.025)), ["0.025", "0.050", "0.075"]);
  assert.deepEqual([62.5, 65].map((value) => tick(value, 2.5)), ["62.5", "65.0"]);
  assert.deepEqual([1000, 20_000].map((value) => tick(value, 1000)), ["1,000", "20,000"]);
  assert.equal(tick(5e-6, 1e-6), "5e−6");
  assert.equal(tick(0.1 + 0.2, 0.1), "0.3");
});

test("sizes, times and counts have units", () => {
  assert.deepEqual([bytes(512), bytes(1536), bytes(60_816_028n), bytes(85_899_345_920)], ["512 B", "1.50 KiB", "58.0 MiB", "80.0 GiB"]);
  assert.deepEqual([0.0042, 0.5, 45.2, 185, 7800, 273_600].map(duration), ["4.2 ms", "0.5 s", "45 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"]);
  assert.deepEqual([duration(59.7), duration(3599.9)], ["1 min 00 s", "1 h 00 min"]);
  assert.deepEqual([age(59.9), age(3599), age(86_400 * 3)], ["59 s", "59 min", "3 d"]);
  assert.deepEqual([counted(1, "phase"), counted(0, "phase"), counted(2, "batch"), counted(3, "policy")], ["1 phase", "0 phases", "2 batches", "3 policies"]);
  assert.deepEqual([compact(0.75123), compact(1234.5), compact(1.5e-7)], ["0.7512", "1,235", "1.50e−7"]);
});

test("a time left is whole seconds, and progress in bytes has their units", () => {
  assert.deepEqual([0.95, 4.9, 5.4, 59.6, 185.2].map(timeLeft), ["a few seconds", "a few seconds", "about 5 s", "about 1 min 00 s", "about 3 min 05 s"]);
  const text = (done: bigint, total: bigint, unit: string) => progressText(PhaseProgress.create({ done, total, unit }));
  assert.equal(text(779_356n, 1_169_621n, "bytes loaded"), "761 KiB of 1.12 MiB loaded");
  assert.deepEqual([text(1200n, 9000n, "prompts"), text(12n, 40n, "steps")], ["1,200 of 9,000 prompts", "step 12 of 40"]);
});

test("a text is cut between characters and at a number of lines", () => {
  assert.equal(cut("a😀b", 2), "a");
  assert.equal(cut("a😀b", 3), "a😀");
  assert.equal(cut("one\ntwo\nthree", 100, 2), "one\ntwo");
  assert.equal(cut("one\ntwo", 100, 2), "one\ntwo");
  const long = "x".repeat(1 << 20);
  assert.equal(cut(long, 700).length, 700);
});

test("controls and reordering characters are seen", () => {
  assert.equal(visible("a\u0000b\u001b[31m\u007f\tc\n"), "a␀b␛[31m␡\tc\n");
  assert.equal(visible("x\u202Eevil\u202C"), "x⟨U+202E⟩evil⟨U+202C⟩");
});
