// The metrics of a round: their display names and charts.

/** The part of a RoundResult that has the metric. */
export type Side = "reward" | "policy";

export interface MetricLine {
  metric: string;
  label: string;
}

export interface ChartDef {
  id: string;
  group: string;
  title: string;
  side: Side;
  lines: MetricLine[];
  unit?: string;
  bounds?: [number | undefined, number | undefined];
  note?: string;
  /** The start policy's value, if it is known without a measurement. */
  start?: number;
}

const RATE: [number, number] = [0, 1];
const POSITIVE: [number, undefined] = [0, undefined];

export const GROUPS = [
  "Reward model",
  "Policy",
  "Distance from the reference",
  "Completions",
  "Sampler against trainer",
  "Training",
  "Other",
] as const;

function one(metric: string, label = metric): MetricLine[] {
  return [{ metric, label }];
}

/** Charts of known metrics, in display order. */
export const CHARTS: ChartDef[] = [
  {
    id: "accuracy",
    group: "Reward model",
    title: "Accuracy",
    side: "reward",
    lines: [
      { metric: "accuracy", label: "human pairs" },
      { metric: "fresh_accuracy", label: "golden against fresh samples" },
    ],
    bounds: RATE,
    note: "On held-out human pairs, and on held-out golden answers against samples of the current policy.",
  },
  {
    id: "ece",
    group: "Reward model",
    title: "Expected calibration error",
    side: "reward",
    lines: [
      { metric: "ece", label: "human pairs" },
      { metric: "fresh_ece", label: "golden against fresh samples" },
    ],
    bounds: RATE,
    note: "0 is calibrated: predicted preferences come true as often as they are predicted.",
  },
  {
    id: "other-calibration",
    group: "Reward model",
    title: "Mean and maximum calibration error",
    side: "reward",
    lines: [
      { metric: "ace", label: "mean over bins, human pairs" },
      { metric: "mce", label: "maximum, human pairs" },
      { metric: "fresh_ace", label: "mean over bins, fresh" },
      { metric: "fresh_mce", label: "maximum, fresh" },
    ],
    bounds: RATE,
  },
  {
    id: "rm-loss",
    group: "Reward model",
    title: "Loss",
    side: "reward",
    lines: [
      { metric: "loss", label: "human pairs" },
      { metric: "fresh_loss", label: "golden against fresh samples" },
    ],
    unit: "nats",
    bounds: POSITIVE,
  },
  {
    id: "margin",
    group: "Reward model",
    title: "Margin of rewards",
    side: "reward",
    lines: [
      { metric: "margin_mean", label: "human pairs" },
      { metric: "fresh_margin_mean", label: "golden against fresh samples" },
    ],
  },
  {
    id: "accuracy-change",
    group: "Reward model",
    title: "Accuracy against round 1",
    side: "reward",
    lines: one("accuracy_change", "human pairs"),
    note: "On the same human pairs; below 0, the reward model forgets human preferences.",
  },
  {
    id: "length-accuracy",
    group: "Reward model",
    title: "Accuracy of preferring the longer answer",
    side: "reward",
    lines: [
      { metric: "length_accuracy", label: "human pairs" },
      { metric: "fresh_length_accuracy", label: "golden against fresh samples" },
    ],
    bounds: RATE,
    note: "What length alone would tell.",
  },
  {
    id: "gain",
    group: "Policy",
    title: "Standardized reward gain",
    side: "policy",
    lines: one("reward_gain", "gain over the start policy"),
    unit: "SD",
    start: 0,
    note: "Reward minus the start policy's on the same prompts, in standard deviations of the latter, by the round's own reward model.",
  },
  {
    id: "reward",
    group: "Policy",
    title: "Raw reward",
    side: "policy",
    lines: one("reward_mean", "mean reward"),
    note: "Each round has its own reward model, with its own zero and unit: rounds are not comparable.",
  },
  { id: "gold", group: "Policy", title: "Gold reward", side: "policy", lines: one("gold_mean", "mean gold reward") },
  {
    id: "difference",
    group: "Policy",
    title: "Against the start policy",
    side: "policy",
    lines: [
      { metric: "reward_difference_mean", label: "reward" },
      { metric: "gold_difference_mean", label: "gold" },
    ],
    note: "On the same prompts.",
  },
  {
    id: "step",
    group: "Policy",
    title: "Against the round before",
    side: "policy",
    lines: [
      { metric: "reward_step_mean", label: "reward" },
      { metric: "gold_step_mean", label: "gold" },
    ],
    note: "On the same prompts, by one reward model. A reward that rises while gold falls is an exploited reward model.",
  },
  {
    id: "kl",
    group: "Distance from the reference",
    title: "KL per sequence",
    side: "policy",
    lines: one("kl", "KL(π ‖ π_ref)"),
    unit: "nats",
    bounds: POSITIVE,
    start: 0,
  },
  {
    id: "kl-token",
    group: "Distance from the reference",
    title: "KL per token",
    side: "policy",
    lines: one("kl_per_token", "KL(π ‖ π_ref)"),
    unit: "nats",
    bounds: POSITIVE,
    start: 0,
  },
  {
    id: "entropy",
    group: "Completions",
    title: "Entropy",
    side: "policy",
    lines: [
      { metric: "entropy", label: "entropy" },
      { metric: "entropy_mean", label: "entropy" },
    ],
    unit: "nats",
    bounds: POSITIVE,
  },
  {
    id: "length",
    group: "Completions",
    title: "Length",
    side: "policy",
    lines: one("length_mean", "mean length"),
    unit: "tokens",
    bounds: POSITIVE,
  },
  {
    id: "truncated",
    group: "Completions",
    title: "Truncated completions",
    side: "policy",
    lines: one("truncated_rate", "cut by max_new_tokens"),
    unit: "fraction",
    bounds: RATE,
  },
  {
    id: "distinct",
    group: "Completions",
    title: "Diversity across prompts",
    side: "policy",
    lines: [
      { metric: "distinct_1", label: "distinct unigrams" },
      { metric: "distinct_2", label: "distinct bigrams" },
    ],
    unit: "fraction",
    bounds: RATE,
  },
  {
    id: "completion-distinct",
    group: "Completions",
    title: "Diversity within a completion",
    side: "policy",
    lines: one("completion_distinct_2", "distinct bigrams"),
    unit: "fraction",
    bounds: RATE,
  },
  {
    id: "duplicates",
    group: "Completions",
    title: "Repeated completions",
    side: "policy",
    lines: [
      { metric: "duplicate_rate", label: "same text for another prompt" },
      { metric: "repeat_rate", label: "same tokens for the same prompt" },
    ],
    unit: "fraction",
    bounds: RATE,
  },
  {
    id: "drift",
    group: "Sampler against trainer",
    title: "Drift of log-probabilities",
    side: "policy",
    lines: [
      { metric: "drift_mean", label: "evaluation" },
      { metric: "reference_drift_mean", label: "reference phase" },
      { metric: "log_probs_drift_mean", label: "reference phase" },
    ],
    unit: "nats per token",
    bounds: POSITIVE,
    note: "Mean |Δ log p| of the same tokens under the same policy; rounding explains up to 0.001 in fp32 and 0.1 in bf16.",
  },
  {
    id: "drift-kl",
    group: "Sampler against trainer",
    title: "Drift as a KL divergence",
    side: "policy",
    lines: [
      { metric: "drift_kl", label: "evaluation" },
      { metric: "reference_drift_kl", label: "reference phase" },
      { metric: "log_probs_drift_kl", label: "reference phase" },
    ],
    unit: "nats per token",
    bounds: POSITIVE,
    note: "KL(sampler ‖ trainer), estimated on the sampler's own tokens.",
  },
  {
    id: "train-reward-loss",
    group: "Training",
    title: "Loss of the reward epoch",
    side: "reward",
    lines: [
      { metric: "train_loss", label: "last epoch" },
      { metric: "train_first_loss", label: "first step" },
    ],
  },
  {
    id: "train-policy-loss",
    group: "Training",
    title: "Loss of the policy epoch",
    side: "policy",
    lines: [
      { metric: "train_loss", label: "last epoch" },
      { metric: "train_first_loss", label: "first step" },
    ],
  },
  {
    id: "train-accuracy",
    group: "Training",
    title: "Training accuracy of the reward model",
    side: "reward",
    lines: one("train_accuracy", "training pairs"),
    bounds: RATE,
  },
];

const KNOWN = new Set(CHARTS.flatMap((chart) => chart.lines.map((line) => `${chart.side}/${line.metric}`)));

/** Whether a metric is a detail of another one (its interval, its deviation) or covers half of the rows. */
export function isDetail(name: string, names: ReadonlySet<string>): boolean {
  if (name.startsWith("selection_") || name.startsWith("report_")) return true;
  const stem = /^(.*)_(low|high|n)$/.exec(name)?.[1];
  if (stem !== undefined && names.has(stem)) return true;
  const mean = /^(.*)_(sd|max)$/.exec(name)?.[1];
  return mean !== undefined && names.has(`${mean}_mean`);
}

const TRAIN = /^train_/;

/** Charts for metrics that belong to no chart above, one for each metric. */
export function unknownCharts(side: Side, names: ReadonlySet<string>): ChartDef[] {
  const unknown = [...names].filter((name) => !KNOWN.has(`${side}/${name}`) && !isDetail(name, names));
  const owner = side === "reward" ? "reward model" : "policy";
  return unknown.map((name) => ({
    id: `${side}-${name.replace(/[^A-Za-z0-9_-]/g, "-")}`,
    group: TRAIN.test(name) ? "Training" : /drift_/.test(name) ? "Sampler against trainer" : "Other",
    title: `${name.replace(TRAIN, "")} (${owner})`,
    side,
    lines: one(name),
  }));
}
