// The curves of a job's rounds.
import type { Job, Metric, RoundResult } from "../../gen/foil/v1/jobs.js";
import type { ChartSpec, Point, Series } from "../chart/spec.js";
import { CHARTS, GROUPS, unknownCharts, type ChartDef, type Side } from "./metrics.js";

export interface ChartGroup {
  name: string;
  charts: ChartSpec[];
}

export function find(metrics: Metric[], name: string): Metric | undefined {
  return metrics.find((metric) => metric.name === name);
}

function sideOf(round: RoundResult, side: Side): Metric[] {
  return side === "reward" ? round.reward : round.policy;
}

/** One metric with its standard error, or with its interval if it has no standard error. */
export function point(metrics: Metric[], name: string, round: number): Point | undefined {
  const metric = find(metrics, name);
  if (!metric || !Number.isFinite(metric.value)) return undefined;
  const stem = name.endsWith("_mean") ? name.slice(0, -"_mean".length) : undefined;
  const value = (other: string) => find(metrics, other)?.value;
  const more: [string, number][] = [];
  for (const [suffix, label] of [["sd", "SD"], ["max", "max"]] as const) {
    const found = stem === undefined ? undefined : value(`${stem}_${suffix}`);
    if (found !== undefined) more.push([label, found]);
  }
  return {
    x: round,
    y: metric.value,
    se: metric.se,
    low: value(`${name}_low`),
    high: value(`${name}_high`),
    label: round === 0 ? "start" : undefined,
    ...(more.length > 0 ? { more } : {}),
  };
}

/** A metric over the rounds; the start policy is round 0. */
export function roundPoints(job: Job, side: Side, name: string, start?: number): Point[] {
  const points: Point[] = [];
  if (side === "policy") {
    const measured = point(job.start, name, 0);
    if (measured) points.push(measured);
    else if (start !== undefined && job.rounds.length > 0) points.push({ x: 0, y: start, label: "start" });
  }
  for (const round of job.rounds) {
    const found = point(sideOf(round, side), name, round.round);
    if (found) points.push({ ...found, marked: round.round === job.bestRound });
  }
  return points.some((one) => one.x > 0) ? points : side === "policy" && find(job.start, name) ? points : [];
}

/** Names of all metrics of a side, ordered by the first round that has them. */
export function metricNames(jobs: Job[], side: Side): Set<string> {
  const names = new Set<string>();
  for (const job of jobs) {
    for (const round of job.rounds) for (const metric of sideOf(round, side)) names.add(metric.name);
    if (side === "policy") for (const metric of job.start) names.add(metric.name);
  }
  return names;
}

/** Charts for which the jobs have metrics. */
export function chartDefs(jobs: Job[]): ChartDef[] {
  const names = { reward: metricNames(jobs, "reward"), policy: metricNames(jobs, "policy") };
  const known = CHARTS.filter((chart) => chart.lines.some((line) => names[chart.side].has(line.metric)));
  return [...known, ...unknownCharts("reward", names.reward), ...unknownCharts("policy", names.policy)];
}

export function specOf(def: ChartDef, series: Series[]): ChartSpec {
  return {
    id: def.id,
    title: def.title,
    note: def.note,
    x: { label: "round", integer: true },
    y: { label: def.lines.length === 1 ? def.lines[0]!.label : def.title, ...(def.unit ? { unit: def.unit } : {}), ...(def.bounds ? { bounds: def.bounds } : {}) },
    series,
    legend: def.lines.length > 1,
    interval: "95 % interval",
  };
}

export function roundChart(job: Job, def: ChartDef): ChartSpec {
  const lines = def.lines.map((line, slot): Series => {
    const points = roundPoints(job, def.side, line.metric, def.start);
    return { key: line.metric, label: line.label, slot, points, line: "line", spread: "bars" };
  });
  return specOf(def, lines.filter((series) => series.points.length > 0));
}

export function inGroups(charts: { group: string; chart: ChartSpec }[]): ChartGroup[] {
  const groups = GROUPS.map((name) => ({
    name,
    charts: charts.filter(({ group, chart }) => group === name && chart.series.length > 0).map(({ chart }) => chart),
  }));
  return groups.filter((group) => group.charts.length > 0);
}

/** All curves of a job, by group, with the best round marked. */
export function roundCharts(job: Job): ChartGroup[] {
  return inGroups(chartDefs([job]).map((def) => ({ group: def.group, chart: roundChart(job, def) })));
}

/** Reward gain (or raw reward) and gold reward over the square root of KL. If they diverge, the policy exploits the reward model. */
export function overoptimization(job: Job): ChartSpec | undefined {
  const stages: { round: number; metrics: Metric[] }[] = [
    { round: 0, metrics: job.start },
    ...job.rounds.map((round) => ({ round: round.round, metrics: round.policy })),
  ];
  const proxy = job.rounds.some((round) => find(round.policy, "reward_gain")) ? "reward_gain" : "reward_mean";
  const path = (name: string): Point[] =>
    stages.flatMap(({ round, metrics }) => {
      const kl = round === 0 ? (find(metrics, "kl")?.value ?? 0) : find(metrics, "kl")?.value;
      const start: Point = { x: 0, y: 0 };
      const found = round === 0 && name === "reward_gain" ? start : point(metrics, name, round);
      if (kl === undefined || !found || !Number.isFinite(kl)) return [];
      const label = round === 0 ? "start" : `round ${round}`;
      return [{ ...found, x: Math.sqrt(Math.max(0, kl)), label, marked: round > 0 && round === job.bestRound }];
    });
  const labels: Record<string, string> = { reward_gain: "proxy: reward gain (SD)", reward_mean: "proxy: raw reward", gold_mean: "gold reward" };
  const series = [proxy, "gold_mean"].map((name, slot): Series => ({
    key: name,
    label: labels[name]!,
    slot,
    points: path(name),
    line: "path",
    spread: "bars",
  }));
  const shown = series.filter((one) => one.points.length > 1);
  if (shown.length === 0) return undefined;
  return {
    id: "overoptimization",
    title: "Proxy and gold reward over distance",
    note: "A proxy that rises while gold falls is an exploited reward model. Points are joined in the order of rounds.",
    x: { label: "√KL", unit: "√nats", bounds: [0, undefined] },
    y: { label: "reward" },
    series: shown,
    interval: "95 % interval",
  };
}
