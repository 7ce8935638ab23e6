import assert from "node:assert/strict";
import { test } from "node:test";
import { CompletionRow, CompletionSort, CompletionToken, PhaseSteps, RoundDistributions, Selection } from "../../gen/foil/v1/results.js";
import { queryRows } from "../../src/model/completions.js";
import { histogramCharts, reliabilityChart, wilson } from "../../src/model/distributions.js";
import { labelFilter } from "../../src/model/labels.js";
import { joined, logLine } from "../../src/model/logs.js";
import { pointsPerPhase, stepCharts, stepKinds, throughput } from "../../src/model/steps.js";
import { availableFigures, summarize, tokenClass } from "../../src/model/tokens.js";
import { withZ } from "../../src/source/report.js";
import { yaml } from "../../src/model/yaml.js";

function phase(round: number, kind: string, steps: number): PhaseSteps {
  const curve = (metric: string, mean: number[], missing: number[] = []) => ({ metric, mean, min: mean.map((one) => one - 1), max: mean.map((one) => one + 1), missing });
  return PhaseSteps.create({
    phase: `r0${round}.${kind}`,
    round,
    kind,
    steps,
    stepsDone: 20,
    stepsPerPoint: 10,
    step: [10, 20],
    curves: [curve("loss", [2, 0], [1]), curve("tokens", [1000, 3000]), curve("seconds", [2, 4]), curve("rewards/margins", [1, 2])],
  });
}

test("phases of a kind follow one another, with gaps, missing values and throughput", () => {
  const phases = [phase(1, "train_policy", 30), phase(1, "train_reward", 5), phase(2, "train_policy", 30)];
  assert.deepEqual(stepKinds(phases), ["train_policy", "train_reward"]);
  const charts = stepCharts([{ key: "run", label: "run", phases }], "train_policy");
  assert.deepEqual(charts.map((chart) => chart.title), ["Loss", "Throughput", "rewards/margins", "Tokens of a step", "Time of a step"]);
  assert.deepEqual(charts[0]!.series[0]!.points.map(({ x, y }) => [x, y]), [[10, 2], [30.5, null], [40, 2]]);
  assert.deepEqual(charts[0]!.dividers, [{ x: 30.5, label: "r2" }]);
  assert.deepEqual(charts[0]!.series[0]!.points[0], { x: 10, y: 2, label: "round 1, step 10", low: 1, high: 3 });
  assert.deepEqual(throughput(phases[0]!).map((value) => value.mean), [500, 750]);
  assert.equal(pointsPerPhase(3), 500);
  assert.equal(pointsPerPhase(121), 40);
});

function row(id: number, completions: { round: number; reward?: number; tokens?: number; text?: string; finished?: boolean; selection?: Selection }[]): CompletionRow {
  return CompletionRow.create({
    promptId: BigInt(id),
    prompt: [{ role: "user", text: { text: `Question ${id}`, bytes: 10n } }],
    completions: completions.map(({ round, reward, tokens = 1, text = "", finished = true, selection = 0 }, index) => ({
      round, index, tokens, finished, selection, text: { text, bytes: 1n }, ...(reward === undefined ? {} : { reward }),
    })),
  });
}

test("rows of a report are sorted and filtered as the coordinator does it", () => {
  const rows = [row(0, [{ round: 1, reward: 3 }, { round: 2, reward: 1, text: "Abc" }]), row(1, [{ round: 2 }]), row(2, [{ round: 2, reward: 0 }, { round: 2, reward: 4 }]), row(3, [{ round: 2, reward: 2, finished: false }])];
  const ids = (part: Partial<Parameters<typeof queryRows>[1]>) =>
    queryRows(rows, { sort: CompletionSort.PROMPT, descending: false, sortRound: 2, filter: undefined, ...part }).map((one) => Number(one.promptId));
  assert.deepEqual(ids({ sort: CompletionSort.REWARD }), [0, 2, 3, 1]);
  assert.deepEqual(ids({ sort: CompletionSort.REWARD, descending: true }), [2, 3, 0, 1]);
  assert.deepEqual(ids({ sort: CompletionSort.REWARD, sortRound: 1 }), [0, 1, 2, 3]);
  assert.deepEqual(ids({ descending: true }), [3, 2, 1, 0]);
  const filter = { contains: "", selection: Selection.UNSPECIFIED };
  assert.deepEqual(ids({ filter: { ...filter, contains: "ABC" } }), [0]);
  assert.deepEqual(ids({ filter: { ...filter, contains: "question 3" } }), [3]);
  assert.deepEqual(ids({ filter: { ...filter, finished: false } }), [3]);
  assert.deepEqual(ids({ filter: { ...filter, minReward: 2 } }), [0, 2, 3]);
});

test("Wilson's interval is that of the formula", () => {
  // statsmodels: proportion_confint(45, 50, method="wilson").
  const [low, high] = wilson(0.9, 50);
  assert.ok(Math.abs(low - 0.7864) < 1e-4 && Math.abs(high - 0.9565) < 1e-4, `${low} ${high}`);
  assert.deepEqual(wilson(0.5, 0), [0, 1]);
  assert.ok(Math.abs(wilson(1, 10)[1] - 1) < 1e-12);
});

test("histograms are fractions of their own sets, and empty bins of a reliability diagram have no point", () => {
  const round = RoundDistributions.create({
    round: 2,
    edges: [0, 1, 2],
    histograms: [{ source: 1, counts: [1n, 3n], count: 4n, mean: 1.2, min: 0, max: 2 }, { source: 2, counts: [0n, 0n], count: 0n, mean: 0, min: 0, max: 0 }],
    reliability: [{ source: 1, ece: 0.05, bins: [{ lower: 0, upper: 0.1, count: 0n }, { lower: 0.9, upper: 1, count: 8n, confidence: 0.95, accuracy: 0.875 }] }],
  });
  const charts = histogramCharts(round);
  assert.equal(charts.length, 1);
  assert.deepEqual(charts[0]!.series.map((series) => series.points.map(({ x, y }) => [x, y])), [[[0, 0.25], [1, 0.75], [2, 0]]]);
  const reliability = reliabilityChart(round)!;
  assert.deepEqual(reliability.series[0]!.points.map(({ x, y }) => [x, y]), [[0.95, 0.875]]);
  assert.equal(reliabilityChart(RoundDistributions.create({})), undefined);
});

test("tokens are colored by how unexpected they are", () => {
  assert.deepEqual([0, -0.2, -8, undefined].map((value) => tokenClass(value, "log_prob")), ["surprise-0", "surprise-1", "surprise-8", ""]);
  assert.deepEqual([0.01, 0.3, -2].map((value) => tokenClass(value, "ratio")), ["", "more-2", "less-4"]);
  const tokens = [CompletionToken.create({ logProb: -0.5 }), CompletionToken.create({ logProb: -1.5 })];
  assert.deepEqual(availableFigures(tokens), ["log_prob"]);
  assert.deepEqual(summarize(tokens, "log_prob"), { count: 2, sum: -2, mean: -1 });
  assert.equal(summarize(tokens, "ratio"), undefined);
});

test("a specification is YAML that reads back as the same values", () => {
  const text = yaml({ name: "hh", seed: 0, on: "yes", stop: ["\n\nHuman:", "a: b"], empty: {}, list: [{ a: 1, b: [2] }], n: null, "odd key:": "1e3" });
  assert.equal(
    text,
    ["name: hh", "seed: 0", '"on": "yes"', 'stop: ["\\n\\nHuman:", "a: b"]', "empty: {}", "list:", "  - a: 1", "    b: [2]", '"n": null', '"odd key:": "1e3"'].join("\n"),
  );
});

test("times of a report are read with an offset, and texts that look like times stay", () => {
  const read = (text: string) => JSON.parse(text, withZ) as unknown;
  assert.deepEqual(read('{"started_at":"2026-03-01T12:00:00.123456+00:00","at":"2026-03-01T12:00:00+00:00","text":"2026-03-01T12:00:00+00:00"}'), {
    started_at: "2026-03-01T12:00:00.123456Z",
    at: "2026-03-01T12:00:00Z",
    text: "2026-03-01T12:00:00+00:00",
  });
});

test("labels are read as the command line reads them", () => {
  assert.deepEqual(labelFilter(" team=speech , env = prod,"), { labels: { team: "speech", env: "prod" } });
  assert.deepEqual(labelFilter("example.com/team=a"), { labels: { "example.com/team": "a" } });
  assert.ok("problem" in labelFilter("team") && "problem" in labelFilter("te am=x") && "problem" in labelFilter("=x"));
});

test("lines of logs are objects, or their own message", () => {
  const line = (text: string) => logLine({ attempt: 1, rank: 0, line: text, droppedBytes: 0n }, 1);
  const found = line('{"time": 1.5, "level": "WARN", "target": "t", "message": "m", "step": 3, "x": {"y": 1}, "loss": 0.30000000000000004}');
  assert.deepEqual([found.at, found.level, found.message, found.fields], [1500, "warn", "m", [["step", "3"], ["x", '{"y":1}'], ["loss", "0.3"]]]);
  for (const text of ["plain", "[1]", "null", '"x"', "{broken"]) assert.equal(line(text).message, text);
  const all = joined([line("a"), line("b")], [line("c")], 2);
  assert.deepEqual(all.map((one) => one.message), ["b", "c"]);
});
