// Histograms of rewards and reliability diagrams as charts.
import { CalibrationSource, RewardSource, type RoundDistributions } from "../../gen/foil/v1/results.js";
import type { ChartSpec, Point, Series } from "../chart/spec.js";

const SOURCES: Partial<Record<RewardSource, string>> = {
  [RewardSource.GOLDEN]: "golden answers",
  [RewardSource.GOLDEN_COMPLETIONS]: "samples for their prompts",
  [RewardSource.CHOSEN]: "chosen (human)",
  [RewardSource.REJECTED]: "rejected (human)",
  [RewardSource.TRAINING]: "training samples",
  [RewardSource.EVALUATION]: "evaluation samples",
  [RewardSource.EVALUATION_GOLD]: "evaluation samples",
};

const PAIRS: Partial<Record<CalibrationSource, string>> = {
  [CalibrationSource.HUMAN]: "human pairs",
  [CalibrationSource.FRESH]: "golden against fresh samples",
};

/** Panels of related histograms, in display order. */
const PANELS: { id: string; title: string; sources: RewardSource[]; note: string }[] = [
  {
    id: "golden",
    title: "Golden answers and samples",
    sources: [RewardSource.GOLDEN, RewardSource.GOLDEN_COMPLETIONS],
    note: "Held-out golden answers and fresh samples for the same prompts: what the reward model must tell apart.",
  },
  {
    id: "human",
    title: "Human pairs",
    sources: [RewardSource.CHOSEN, RewardSource.REJECTED],
    note: "The two answers of held-out human pairs.",
  },
  {
    id: "policy",
    title: "Samples of the policy",
    sources: [RewardSource.TRAINING, RewardSource.EVALUATION],
    note: "The samples that the policy is trained on, and those of its evaluation.",
  },
  {
    id: "gold",
    title: "Gold rewards",
    sources: [RewardSource.EVALUATION_GOLD],
    note: "The gold rewards of the evaluation samples.",
  },
];

function outline(counts: bigint[], edges: number[]): Point[] {
  const all = counts.reduce((sum, count) => sum + Number(count), 0);
  const points: Point[] = counts.map((count, i) => ({
    x: edges[i]!,
    y: all === 0 ? 0 : Number(count) / all,
    label: `${format(edges[i]!)} to ${format(edges[i + 1]!)}`,
    more: [["count", Number(count)]],
  }));
  points.push({ x: edges[counts.length]!, y: 0, label: `from ${format(edges[counts.length]!)}` });
  return points;
}

function format(value: number): string {
  return String(Number(value.toPrecision(4))).replace("-", "\u2212");
}

/** Histograms as fractions, because sets differ in size. */
export function histogramCharts(round: RoundDistributions): ChartSpec[] {
  return PANELS.flatMap((panel) => {
    const found = panel.sources.flatMap((source) => round.histograms.find((one) => one.source === source && one.count > 0n) ?? []);
    const edges = panel.id === "gold" ? round.goldEdges : round.edges;
    if (found.length === 0 || edges.length < 2) return [];
    const series = found.map((one): Series => ({
      key: String(one.source),
      label: `${SOURCES[one.source] ?? "other"}: mean ${format(Number(one.mean.toPrecision(3)))}${one.standardDeviation === undefined ? "" : `, SD ${format(Number(one.standardDeviation.toPrecision(3)))}`}, n ${Number(one.count).toLocaleString("en-US")}`,
      slot: panel.sources.indexOf(one.source),
      points: outline(one.counts, edges),
      line: "outline",
      spread: "none",
    }));
    return [
      {
        id: `histogram-${panel.id}`,
        title: panel.title,
        note: panel.note,
        x: { label: "reward", range: [edges[0]!, edges[edges.length - 1]!] },
        y: { label: "fraction", unit: "fraction of each", bounds: [0, undefined] },
        series,
      } satisfies ChartSpec,
    ];
  });
}

const Z = 1.959964;

/** Wilson's 95 % interval of a fraction of `n`. */
export function wilson(fraction: number, n: number): [number, number] {
  if (n === 0) return [0, 1];
  const shift = (Z * Z) / n;
  const center = (fraction + shift / 2) / (1 + shift);
  const half = (Z * Math.sqrt((fraction * (1 - fraction)) / n + shift / (4 * n))) / (1 + shift);
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

export function reliabilityChart(round: RoundDistributions): ChartSpec | undefined {
  const series = round.reliability.flatMap((diagram, slot): Series[] => {
    const points = diagram.bins.flatMap((bin): Point[] => {
      if (bin.confidence === undefined || bin.accuracy === undefined) return [];
      const [low, high] = wilson(bin.accuracy, Number(bin.count));
      return [{ x: bin.confidence, y: bin.accuracy, low, high, label: `predicted ${format(bin.lower)} to ${format(bin.upper)}`, more: [["count", Number(bin.count)]] }];
    });
    if (points.length === 0) return [];
    return [{ key: String(diagram.source), label: `${PAIRS[diagram.source] ?? "other pairs"}: ECE ${format(Number(diagram.ece.toPrecision(3)))}`, slot, points, line: "path", spread: "bars" }];
  });
  if (series.length === 0) return undefined;
  return {
    id: "reliability",
    title: "Reliability of the reward model",
    note: "How often predicted preferences come true; on the dashed line the model is calibrated. Bars are Wilson's 95 % intervals, with pairs taken as independent.",
    x: { label: "predicted probability", range: [0, 1] },
    y: { label: "came true", unit: "fraction", range: [0, 1] },
    series,
    reference: { from: [0, 0], to: [1, 1], label: "calibrated" },
    interval: "95 % interval",
  };
}
