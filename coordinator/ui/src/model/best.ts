// The best round, and its metric on the rows that were not used to select it.
import type { Job } from "../../gen/foil/v1/jobs.js";
import { estimate } from "./format.js";
import { find } from "./rounds.js";

/** Text on how the best round was selected. Undefined until a round is evaluated. */
export function bestText(job: Job): string | undefined {
  const round = job.rounds.find((one) => one.round === job.bestRound && one.round > 0);
  if (!round) return undefined;
  const by = job.spec?.evaluation?.metricForBestModel ?? "";
  const metrics = by === "reward_accuracy" ? round.reward : round.policy;
  const name = by === "reward_accuracy" ? "accuracy" : by;
  const counted = by === "reward_gain" ? "reward_difference_mean" : name;
  const half = (prefix: string) => {
    const figure = find(metrics, `${prefix}${name}`);
    const rows = find(metrics, `${prefix}${counted}_n`);
    return figure && rows ? { figure, rows: rows.value } : undefined;
  };
  const [selection, report] = [half("selection_"), half("report_")];
  if (!selection || !report) {
    return `Round ${round.round} is the best by ${by}, on the same rows on which its metrics are measured, so that they are optimistic.`;
  }
  const { value, se } = report.figure;
  return `Round ${round.round} is the best by ${by} on ${selection.rows} of the evaluation rows; on the other ${report.rows} it is ${estimate({ value, se })}.`;
}
