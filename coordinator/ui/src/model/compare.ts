// Comparison of several runs: arms that differ in their settings, each with one or more seeds.
import type { Job } from "../../gen/foil/v1/jobs.js";
import type { RunReport } from "../../gen/foil/v1/results.js";
import type { ChartSpec, Point, Series } from "../chart/spec.js";
import { digitsOf, fixed } from "./format.js";
import { COLUMNS } from "./roundTable.js";
import { chartDefs, inGroups, roundPoints, specOf, type ChartGroup } from "./rounds.js";

export interface Run {
  job: Job;
  /** A short and unique name. */
  name: string;
  seed: number;
}

export interface Arm {
  name: string;
  runs: Run[];
}

function unique(name: string, taken: Set<string>): string {
  let found = name;
  for (let i = 2; taken.has(found); i += 1) found = `${name} (${i})`;
  taken.add(found);
  return found;
}

/** The arms of a report, in order of appearance. */
export function armsOf(runs: Pick<RunReport, "arm" | "job" | "directory">[]): Arm[] {
  const groups = new Map<string, Pick<RunReport, "job" | "directory">[]>();
  for (const run of runs) {
    if (!run.job) continue;
    const name = run.arm || run.job.name || run.job.id;
    const group = groups.get(name);
    if (group) group.push(run);
    else groups.set(name, [run]);
  }
  const names = new Set<string>();
  return [...groups].map(([name, group]) => ({
    name,
    runs: group.map(({ job }) => {
      const seed = job!.spec?.seed ?? 0;
      return { job: job!, seed, name: unique(group.length === 1 ? name : `${name}, seed ${seed}`, names) };
    }),
  }));
}

/** 0.975 quantiles of Student's t for 1 to 30 degrees of freedom. */
const T = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086, 2.08,
  2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/** The mean of a sample with its 95 % interval by Student's t. A single value has no interval. */
export function meanInterval(values: number[]): { mean: number; low?: number; high?: number } {
  const n = values.length;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  if (n < 2) return { mean };
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  const half = (T[n - 2] ?? 1.96) * Math.sqrt(variance / n);
  return { mean, low: mean - half, high: mean + half };
}

function armPoints(runs: Point[][]): Point[] {
  const byRound = new Map<number, Point[]>();
  for (const points of runs) {
    for (const point of points) {
      if (point.y === null) continue;
      const found = byRound.get(point.x);
      if (found) found.push(point);
      else byRound.set(point.x, [point]);
    }
  }
  return [...byRound]
    .sort(([a], [b]) => a - b)
    .map(([x, points]) => {
      const { mean, low, high } = meanInterval(points.map((point) => point.y!));
      const { se, label } = points[0]!;
      // No interval, so that no band extends there.
      const spread = points.length === 1 ? { se } : { low, high };
      return { x, y: mean, ...spread, label, ...(runs.length > 1 ? { more: [["seeds", points.length]] } : {}) };
    });
}

/** The main figures of an arm. */
export interface ArmRow {
  arm: string;
  seeds: number;
  /** The last round that all its runs have reached. */
  round: number;
  /** Figures by the column heads of the table of rounds. */
  figures: Map<string, string>;
}

export function armRows(arms: Arm[]): ArmRow[] {
  return arms.map((arm) => {
    const round = Math.min(...arm.runs.map((run) => Math.max(0, ...run.job.rounds.map((one) => one.round))));
    const figures = COLUMNS.flatMap((column): [string, string][] => {
      const found = arm.runs.flatMap((run) => roundPoints(run.job, column.side, column.metric).find((one) => one.x === round) ?? []);
      const values = found.flatMap((one) => one.y ?? []);
      if (values.length < arm.runs.length) return [];
      const { mean, high } = meanInterval(values);
      const half = high === undefined ? found[0]!.se : high - mean;
      const digits = digitsOf(column.digits, half);
      return [[column.head, `${fixed(mean, digits)}${half === undefined ? "" : ` ± ${fixed(half, digits)}`}`]];
    });
    return { arm: arm.name, seeds: arm.runs.length, round, figures: new Map(figures) };
  });
}

/** Charts of all metrics with a line for each arm, as the mean over seeds with its band, or with a line for each run. */
export function compareCharts(arms: Arm[], perRun: boolean): ChartGroup[] {
  const runs = arms.flatMap((arm) => arm.runs);
  const charts = chartDefs(runs.map((run) => run.job)).flatMap((def) =>
    def.lines.map((line, i) => {
      const points = (run: Run) => roundPoints(run.job, def.side, line.metric, def.start);
      const series = perRun
        ? runs.map((run, slot): Series => ({ key: run.name, label: run.name, slot, points: points(run), line: "line", spread: "bars" }))
        : arms.map((arm, slot): Series => {
            const all = arm.runs.map(points);
            const several = arm.runs.length > 1;
            return { key: arm.name, label: several ? `${arm.name} (${arm.runs.length} seeds)` : arm.name, slot, points: armPoints(all), line: "line", spread: several ? "band" : "bars" };
          });
      const spec = specOf(def, series.filter((one) => one.points.length > 0));
      const title = def.lines.length > 1 ? `${def.title}: ${line.label}` : def.title;
      return { group: def.group, chart: { ...spec, id: i === 0 ? spec.id : `${spec.id}-${i}`, title, y: { ...spec.y, label: title } } satisfies ChartSpec };
    }),
  );
  return inGroups(charts);
}
