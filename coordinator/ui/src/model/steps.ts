// The curves of training steps, with the phases of one kind concatenated.
import type { PhaseSteps, StepCurve } from "../../gen/foil/v1/results.js";
import type { ChartSpec, Point, Series } from "../chart/spec.js";

export const KINDS: Record<string, string> = {
  sft: "SFT",
  train_reward: "Reward model",
  train_policy: "Policy",
};

const FIRST = ["loss", "grad_norm", "learning_rate", "throughput"];
const LAST = ["rows", "tokens", "seconds", "skipped"];

const TITLES: Record<string, { title: string; unit?: string; note?: string; bounds?: [number | undefined, number | undefined] }> = {
  loss: { title: "Loss", note: "Before the step's update." },
  grad_norm: { title: "Gradient norm", note: "Global norm, before clipping.", bounds: [0, undefined] },
  learning_rate: { title: "Learning rate", bounds: [0, undefined] },
  throughput: { title: "Throughput", unit: "tokens/s", note: "Tokens without padding, over all ranks.", bounds: [0, undefined] },
  rows: { title: "Rows of a step", bounds: [0, undefined] },
  tokens: { title: "Tokens of a step", unit: "tokens", bounds: [0, undefined] },
  seconds: { title: "Time of a step", unit: "s", bounds: [0, undefined] },
  skipped: { title: "Skipped steps", note: "1 where the loss or gradient was not finite.", bounds: [0, 1] },
};

/** Kinds of training phases with steps, in plan order. */
export function stepKinds(phases: PhaseSteps[]): string[] {
  return [...new Set(phases.filter((phase) => phase.curves.length > 0).map((phase) => phase.kind))];
}

/** One value of a curve at a point of its phase. */
interface Value {
  step: number;
  mean: number;
  min: number;
  max: number;
}

function valuesOf(phase: PhaseSteps, curve: StepCurve): Value[] {
  const missing = new Set(curve.missing);
  return phase.step.flatMap((step, i) => {
    const [mean, min, max] = [curve.mean[i], curve.min[i], curve.max[i]];
    return missing.has(i) || mean === undefined || min === undefined || max === undefined ? [] : [{ step, mean, min, max }];
  });
}

/** Tokens per second: the tokens of a point's steps over their duration. */
export function throughput(phase: PhaseSteps): Value[] {
  const curve = (name: string) => phase.curves.find((one) => one.metric === name);
  const [tokens, seconds] = [curve("tokens"), curve("seconds")];
  if (!tokens || !seconds) return [];
  const time = new Map(valuesOf(phase, seconds).map((value) => [value.step, value.mean]));
  return valuesOf(phase, tokens).flatMap(({ step, mean }) => {
    const spent = time.get(step) ?? 0;
    // The extremes of a quotient are not the quotients of the extremes.
    return spent > 0 ? [{ step, mean: mean / spent, min: mean / spent, max: mean / spent }] : [];
  });
}

export interface RunSteps {
  key: string;
  label: string;
  phases: PhaseSteps[];
}

interface Placed {
  phase: PhaseSteps;
  /** Number of steps of all earlier phases of the kind. */
  offset: number;
}

function placed(phases: PhaseSteps[], kind: string): Placed[] {
  let offset = 0;
  return phases
    .filter((phase) => phase.kind === kind)
    .map((phase) => {
      const here = { phase, offset };
      offset += Math.max(phase.steps, phase.stepsDone);
      return here;
    });
}

function pointsOf(places: Placed[], metric: string): Point[] {
  const points: Point[] = [];
  for (const { phase, offset } of places) {
    const curve = phase.curves.find((one) => one.metric === metric);
    const values = metric === "throughput" ? throughput(phase) : curve ? valuesOf(phase, curve) : [];
    if (values.length === 0) continue;
    // The line is interrupted between the end of one phase and the start of the next.
    if (points.length > 0) points.push({ x: offset + 0.5, y: null });
    // A band covers all points, even those of a single step.
    const ranges = values.some(({ min, max }) => min < max);
    for (const { step, mean, min, max } of values) {
      const name = phase.round > 0 ? `round ${phase.round}, step ${step}` : `step ${step}`;
      points.push({ x: offset + step, y: mean, label: name, ...(ranges ? { low: min, high: max } : {}) });
    }
  }
  return points;
}

/** One chart for each metric of the phases of a kind, with a line for each run. */
export function stepCharts(runs: RunSteps[], kind: string): ChartSpec[] {
  const places = runs.map((run) => placed(run.phases, kind));
  const names = new Set(places.flat().flatMap(({ phase }) => phase.curves.map((curve) => curve.metric)));
  if (names.has("tokens") && names.has("seconds")) names.add("throughput");
  const own = [...names].filter((name) => !FIRST.includes(name) && !LAST.includes(name));
  const order = [...FIRST, ...own, ...LAST].filter((name) => names.has(name));
  const longest = places.reduce((most, one) => (one.length > most.length ? one : most), [] as Placed[]);
  const dividers = longest.filter(({ offset }) => offset > 0).map(({ phase, offset }) => ({ x: offset + 0.5, label: `r${phase.round}` }));
  return order.map((metric) => {
    const known = TITLES[metric];
    const series = runs.map((run, slot): Series => ({
      key: run.key,
      label: run.label,
      slot,
      points: pointsOf(places[slot]!, metric),
      // Drawn point by point, with a gap between phases.
      line: "path",
      spread: "band",
    }));
    return {
      id: `steps-${metric.replace(/[^A-Za-z0-9_-]/g, "-")}`,
      title: known?.title ?? metric,
      note: known?.note,
      x: { label: "step", integer: true },
      y: { label: known?.title ?? metric, ...(known?.unit ? { unit: known.unit } : {}), ...(known?.bounds ? { bounds: known.bounds } : {}) },
      series: series.filter((one) => one.points.length > 0),
      dividers,
      interval: "min to max",
    };
  });
}

/** The number of points to request per phase, so that all phases together have at most a few thousand. */
export function pointsPerPhase(phases: number): number {
  return Math.max(40, Math.min(500, Math.floor(4000 / Math.max(1, phases))));
}
