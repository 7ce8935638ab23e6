// The rounds of a job, one row each, with the main figures.
import type { Job } from "../../gen/foil/v1/jobs.js";
import { digitsOf, fixed, NONE } from "./format.js";
import type { Side } from "./metrics.js";
import { find, point } from "./rounds.js";

export interface Column {
  head: string;
  title: string;
  side: Side;
  metric: string;
  /** Digits after the point, like on the command line. This is the minimum if there is an error. */
  digits: number;
}

export const COLUMNS: Column[] = [
  { head: "RM human", title: "Accuracy of the reward model on held-out human pairs", side: "reward", metric: "accuracy", digits: 3 },
  { head: "RM fresh", title: "Accuracy on held-out golden answers against fresh samples", side: "reward", metric: "fresh_accuracy", digits: 3 },
  { head: "gain", title: "Reward over the start policy's, in standard deviations", side: "policy", metric: "reward_gain", digits: 2 },
  { head: "reward", title: "Mean reward by the round's own reward model", side: "policy", metric: "reward_mean", digits: 2 },
  { head: "gold", title: "Mean gold reward", side: "policy", metric: "gold_mean", digits: 2 },
  { head: "KL", title: "KL(π ‖ π_ref) per sequence, in nats", side: "policy", metric: "kl", digits: 3 },
  { head: "length", title: "Mean length in tokens", side: "policy", metric: "length_mean", digits: 1 },
];

export interface RoundRow {
  round: number;
  best: boolean;
  cells: string[];
}

export interface RoundTable {
  columns: { head: string; title: string }[];
  rows: RoundRow[];
}

/** Columns without figures are omitted. */
export function roundTable(job: Job): RoundTable {
  const rounds = job.rounds.map((round) => ({ round: round.round, reward: round.reward, policy: round.policy }));
  const gains = job.rounds.some((round) => find(round.policy, "reward_gain"));
  const stages = job.start.length > 0 ? [{ round: 0, reward: [], policy: job.start }, ...rounds] : rounds;
  const text = (stage: (typeof stages)[number], column: Column) => {
    if (stage.round === 0 && column.metric === "reward_gain" && gains) return fixed(0, column.digits);
    const found = point(stage[column.side], column.metric, stage.round);
    if (!found || found.y === null) return NONE;
    const [value, se, low, high] = [found.y, found.se, found.low, found.high].map((one) => (one === undefined ? undefined : fixed(one, digitsOf(column.digits, found.se))));
    if (se !== undefined) return `${value} ± ${se}`;
    return low !== undefined && high !== undefined ? `${value} [${low}, ${high}]` : value!;
  };
  const shown = COLUMNS.filter((column) => stages.some((stage) => text(stage, column) !== NONE));
  return {
    columns: shown.map(({ head, title }) => ({ head, title })),
    rows: stages.map((stage) => ({
      round: stage.round,
      best: stage.round > 0 && stage.round === job.bestRound,
      cells: shown.map((column) => text(stage, column)),
    })),
  };
}
