import assert from "node:assert/strict";
import { test } from "node:test";
import { Job, JobSpec, JobState, Metric } from "../../gen/foil/v1/jobs.js";
import { csv, figures, summary } from "../../src/chart/figures.js";
import { aligned, bands, padded, xRange, yRange } from "../../src/chart/spec.js";
import { armsOf, compareCharts, meanInterval } from "../../src/model/compare.js";
import { bestText } from "../../src/model/best.js";
import { isDetail } from "../../src/model/metrics.js";
import { overoptimization, roundCharts, roundPoints } from "../../src/model/rounds.js";
import { roundTable } from "../../src/model/roundTable.js";

function metric(name: string, value: number, se?: number): Metric {
  return Metric.create(se === undefined ? { name, value } : { name, value, se });
}

function job(): Job {
  const round = (round: number, accuracy: Metric[], gain: number, kl: number, gold: number) => ({
    round,
    reward: [...accuracy, metric("ece", 0.05), metric("fresh_accuracy", 0.95, 0.01)],
    policy: [metric("reward_gain", gain, 0.1), metric("kl", kl, 0.2), metric("gold_mean", gold, 0.06), metric("length_mean", 9.5, 0.1), metric("length_sd", 2), metric("my_metric", gain)],
  });
  return Job.create({
    state: JobState.SUCCEEDED,
    start: [metric("gold_mean", 2.5, 0.06), metric("length_mean", 8, 0.1)],
    rounds: [round(1, [metric("accuracy", 1), metric("accuracy_low", 0.9), metric("accuracy_high", 1)], 0.5, 4, 3), round(2, [metric("accuracy", 0.7, 0.02)], 1, 9, 2.75)],
    bestRound: 1,
  });
}

test("points have errors, intervals, and the start policy as round 0", () => {
  const gold = roundPoints(job(), "policy", "gold_mean");
  assert.deepEqual(gold.map(({ x, y, se, marked, label }) => ({ x, y, se, marked, label })), [
    { x: 0, y: 2.5, se: 0.06, marked: undefined, label: "start" },
    { x: 1, y: 3, se: 0.06, marked: true, label: undefined },
    { x: 2, y: 2.75, se: 0.06, marked: false, label: undefined },
  ]);
  const accuracy = roundPoints(job(), "reward", "accuracy");
  assert.deepEqual(accuracy.map(({ y, se, low, high }) => [y, se, low, high]), [[1, undefined, 0.9, 1], [0.7, 0.02, undefined, undefined]]);
  assert.deepEqual(roundPoints(job(), "policy", "reward_gain", 0)[0], { x: 0, y: 0, label: "start" });
  assert.deepEqual(roundPoints(job(), "policy", "absent", 0), []);
});

test("known metrics are grouped, unknown ones come under other, details under their metric", () => {
  const groups = new Map(roundCharts(job()).map((group) => [group.name, group.charts.map((chart) => chart.id)]));
  assert.deepEqual(groups.get("Reward model"), ["accuracy", "ece"]);
  assert.deepEqual(groups.get("Policy"), ["gain", "gold"]);
  assert.deepEqual(groups.get("Other"), ["policy-my_metric"]);
  assert.ok(!JSON.stringify([...groups]).includes("length_sd"));
  const names = new Set(["accuracy", "accuracy_low", "drift_mean", "drift_max", "queue_max", "selection_gold_mean", "gold_mean"]);
  assert.deepEqual([...names].filter((name) => isDetail(name, names)), ["accuracy_low", "drift_max", "selection_gold_mean"]);
});

test("proxy and gold are drawn over the root of KL, in the order of rounds", () => {
  const spec = overoptimization(job())!;
  assert.deepEqual(spec.series.map(({ key, points }) => [key, points.map((point) => [point.x, point.y])]), [
    ["reward_gain", [[0, 0], [2, 0.5], [3, 1]]],
    ["gold_mean", [[0, 2.5], [2, 3], [3, 2.75]]],
  ]);
  const negative = job();
  negative.rounds[0]!.policy.find((one) => one.name === "kl")!.value = -1e-9;
  assert.equal(overoptimization(negative)!.series[0]!.points[1]!.x, 0);
  assert.equal(overoptimization(Job.create({})), undefined);
});

test("the table of rounds has the digits of the command line, two of an error", () => {
  const { columns, rows } = roundTable(job());
  assert.deepEqual(columns.map((column) => column.head), ["RM human", "RM fresh", "gain", "gold", "KL", "length"]);
  assert.deepEqual(rows[0], { round: 0, best: false, cells: ["–", "–", "0.00", "2.500 ± 0.060", "–", "8.00 ± 0.10"] });
  assert.deepEqual(rows[1]!.cells, ["1.000 [0.900, 1.000]", "0.950 ± 0.010", "0.50 ± 0.10", "3.000 ± 0.060", "4.000 ± 0.200", "9.50 ± 0.10"]);
  assert.deepEqual(rows.map((row) => row.best), [false, true, false]);
  const [small, none] = [job(), job()];
  small.rounds[0]!.policy = [metric("gold_mean", 0.0041, 0.0123)];
  none.rounds[0]!.policy = [metric("gold_mean", 0.1, 1e-17)];
  assert.deepEqual([small, none].map((one) => roundTable(one).rows[1]!.cells[3]), ["0.004 ± 0.012", "0.10 ± 0.00"]);
});

test("the best round is reported on the rows that did not select it", () => {
  const found = job();
  found.spec = JobSpec.create({ evaluation: { gold: "", metricForBestModel: "gold_mean" } });
  assert.match(bestText(found)!, /optimistic/);
  found.rounds[0]!.policy.push(metric("selection_gold_mean", 3.2), metric("selection_gold_mean_n", 251), metric("report_gold_mean", 3.1, 0.09), metric("report_gold_mean_n", 249));
  assert.equal(bestText(found), "Round 1 is the best by gold_mean on 251 of the evaluation rows; on the other 249 it is 3.100 ± 0.090.");
  assert.equal(bestText(Job.create({})), undefined);
});

test("an axis holds all error bars and keeps its bounds", () => {
  const spec = roundCharts(job())[0]!.charts[0]!;
  const [from, to] = yRange(spec, new Set());
  assert.ok(from > 0.6 && from < 0.68 && to === 1, `${from} to ${to}`);
  const [hiddenFrom] = yRange(spec, new Set(["accuracy"]));
  assert.ok(hiddenFrom > 0.9);
  assert.deepEqual(padded(5, 5, { label: "" }), [4.5, 5.5]);
  assert.deepEqual(padded(Infinity, -Infinity, { label: "" }), [0, 1]);
});

test("an x axis has room around its points, one alone too, and keeps a zoom", () => {
  const rounds = { label: "round", integer: true };
  assert.deepEqual(xRange(rounds, [1, 2, 3], 1, 3), [0.75, 3.25]);
  assert.deepEqual(xRange(rounds, [1, 2, 3], 1.5, 2.5), [1.5, 2.5]);
  // uPlot's range for equal minimum and maximum.
  assert.deepEqual(xRange(rounds, [1], 0, 100), [0.75, 1.25]);
  assert.deepEqual(xRange({ label: "KL" }, [5], -95, 105), [4.5, 5.5]);
  assert.deepEqual(xRange(rounds, [], null, null), [0, 1]);
});

test("series with other rounds share one x", () => {
  const series = (key: string, points: { x: number; y: number | null }[]) => ({ key, label: key, slot: 0, points, line: "line" as const, spread: "none" as const });
  const { xs, ys } = aligned([series("a", [{ x: 1, y: 5 }, { x: 3, y: 6 }]), series("b", [{ x: 2, y: null }, { x: 3, y: 7 }])]);
  assert.deepEqual(xs, [1, 2, 3]);
  assert.deepEqual(ys, [[5, undefined, 6], [undefined, null, 7]]);
});

test("the figures of a chart are a table and safe CSV", () => {
  const spec = roundCharts(job()).find((group) => group.name === "Completions")!.charts[0]!;
  assert.deepEqual(figures(spec), {
    head: ["point", "mean length", "mean length: standard error", "mean length: SD"],
    rows: [["start", "8", "0.1", "–"], ["round 1", "9.5", "0.1", "2"], ["round 2", "9.5", "0.1", "2"]],
  });
  assert.equal(csv(spec).split("\n")[1], '"start",8,0.1,');
  const formula = csv({ ...spec, series: [{ ...spec.series[0]!, label: '=cmd("x")' }] });
  assert.ok(formula.startsWith(`"point","'=cmd(""x"")"`), formula);
  assert.match(summary(spec), /mean length: 8.00 ± 0.10 at start, 9.50 ± 0.10 at round 2/);
});

test("arms are means over seeds with Student's intervals", () => {
  // 4.302653 is the 0.975 quantile of t with 2 degrees of freedom.
  const { mean, low, high } = meanInterval([1, 2, 3]);
  assert.equal(mean, 2);
  assert.ok(Math.abs(high! - 2 - 4.302653 / Math.sqrt(3)) < 1e-3 && Math.abs(low! + high! - 4) < 1e-12);
  assert.deepEqual(meanInterval([5]), { mean: 5 });
  const run = (arm: string, seed: number, shift: number) => {
    const one = job();
    one.id = `${arm}-${seed}`;
    one.spec = JobSpec.create({ seed });
    for (const round of one.rounds) for (const metric of round.policy) metric.value += shift;
    return { arm, job: one, directory: "" };
  };
  const arms = armsOf([run("a", 0, 0), run("b", 0, 5), run("a", 1, 1), run("a", 1, 2)]);
  assert.deepEqual(arms.map((arm) => arm.runs.map((one) => one.name)), [["a, seed 0", "a, seed 1", "a, seed 1 (2)"], ["b"]]);
  const gold = compareCharts(arms, false).find((group) => group.name === "Policy")!.charts.find((chart) => chart.id === "gold")!;
  assert.deepEqual(gold.series.map((series) => [series.label, series.spread, series.points[1]!.y]), [["a (3 seeds)", "band", 4], ["b", "bars", 8]]);
  assert.equal(compareCharts(arms, true)[0]!.charts[0]!.series.length, 4);
});

test("an arm has a band where two or more of its runs are, and an error where one is", () => {
  const run = (seed: number, rounds: number) => {
    const one = job();
    one.id = String(seed);
    one.spec = JobSpec.create({ seed });
    one.rounds = one.rounds.slice(0, rounds);
    for (const round of one.rounds) for (const metric of round.policy) metric.value += seed;
    return { arm: "a", job: one, directory: "" };
  };
  const goldOf = (short: number) => {
    const charts = compareCharts(armsOf([run(0, 2), run(1, short)]), false).flatMap((group) => group.charts);
    return charts.find((chart) => chart.id === "gold")!.series[0]!;
  };
  const gold = goldOf(1);
  assert.deepEqual(gold.points.map(({ x, se, more }) => [x, se, more]), [[0, undefined, [["seeds", 2]]], [1, undefined, [["seeds", 2]]], [2, 0.06, [["seeds", 1]]]]);
  assert.deepEqual(bands(gold).map((stretch) => stretch.map((point) => point.x)), [[0, 1]]);
  assert.deepEqual(bands({ ...gold, spread: "bars" }), []);
  const points = [0, 1, 2, 3, 4, 5].map((x) => ({ x, y: x === 2 ? null : 1, ...(x === 4 ? {} : { low: 0, high: 2 }) }));
  assert.deepEqual(bands({ ...gold, points }).map((stretch) => stretch.map((point) => point.x)), [[0, 1]]);
});
