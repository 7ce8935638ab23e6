// Synthetic job data: deterministic figures that look like those of a real game.
import type { Timestamp } from "../../gen/google/protobuf/timestamp.js";
import { Job, JobSpec, JobState, Metric, PhasePlan, RoundResult } from "../../gen/foil/v1/jobs.js";
import { Artifact } from "../../gen/foil/v1/artifacts.js";

/** A uniform number in [0, 1) that depends only on its arguments. */
export function chance(...keys: number[]): number {
  let state = 0x9e3779b9;
  for (const key of keys) {
    state = Math.imul(state ^ (key + 0x7f4a7c15), 0x85ebca6b);
    state ^= state >>> 13;
    state = Math.imul(state, 0xc2b2ae35);
    state ^= state >>> 16;
  }
  return (state >>> 0) / 2 ** 32;
}

/** A normal number that depends only on its arguments. */
export function normal(...keys: number[]): number {
  const [a, b] = [Math.max(1e-9, chance(...keys, 1)), chance(...keys, 2)];
  return Math.sqrt(-2 * Math.log(a)) * Math.cos(2 * Math.PI * b);
}

export function at(ms: number): Timestamp {
  return { seconds: BigInt(Math.floor(ms / 1000)), nanos: (Math.floor(ms) % 1000) * 1e6 };
}

export function hash(...keys: number[]): string {
  return Array.from({ length: 8 }, (_, i) => Math.floor(chance(...keys, i, 77) * 2 ** 32).toString(16).padStart(8, "0")).join("");
}

const WORKS: [string, string, number, number][] = [
  ["reward.generate", "generate", 4, 0],
  ["reward.train", "train_reward", 0, 60],
  ["reward.evaluate", "evaluate_reward", 3, 0],
  ["reward.evaluate_fresh", "evaluate_reward", 2, 0],
  ["policy.generate", "generate", 12, 0],
  ["policy.score", "score", 12, 0],
  ["policy.ref_log_probs", "ref_log_probs", 12, 0],
  ["policy.train", "train_policy", 0, 90],
  ["policy.evaluate", "evaluate_policy", 5, 0],
];

export function planOf(rounds: number): PhasePlan[] {
  const phase = (round: number, [work, kind, chunks, steps]: (typeof WORKS)[number]) =>
    PhasePlan.create({ id: `r${String(round).padStart(2, "0")}.${work}`, round, kind, chunks, steps });
  const first = [phase(0, ["sft", "sft", 0, 120]), phase(0, ["policy.evaluate", "evaluate_policy", 5, 0])];
  return [...first, ...Array.from({ length: rounds }, (_, i) => WORKS.map((work) => phase(i + 1, work))).flat()];
}

function metric(name: string, value: number, se?: number): Metric {
  return Metric.create({ name, value, ...(se === undefined ? {} : { se }) });
}

function rate(name: string, value: number, n: number): Metric[] {
  const se = Math.sqrt((value * (1 - value)) / n);
  if (se === 0) return [metric(name, value), metric(`${name}_low`, 0.925), metric(`${name}_high`, 1)];
  return [metric(name, value, se), metric(`${name}_low`, value - 2 * se), metric(`${name}_high`, Math.min(1, value + 2 * se))];
}

/** The progress of a game of `rounds` rounds at a given round, from 0 to 1. */
const part = (round: number, rounds: number) => round / Math.max(1, rounds);

export function goldAt(round: number, rounds: number): number {
  const t = part(round, rounds);
  return 2.6 + 2.4 * t - 1.5 * t * t * t + 0.08 * normal(round, 4);
}

export function policyMetrics(round: number, rounds: number): Metric[] {
  const t = part(round, rounds);
  const kl = 0.4 * round + 5 * t * t;
  const own = [
    metric("reward_mean", 0.3 + 1.9 * Math.sqrt(t) + 0.2 * normal(round, 3), 0.05),
    metric("reward_sd", 0.9 + 0.1 * t),
    metric("gold_mean", goldAt(round, rounds), 0.06),
    metric("gold_sd", 0.8),
    metric("length_mean", 9 + 3.5 * t + 0.2 * normal(round, 5), 0.14),
    metric("length_sd", 2.3),
    ...rate("truncated_rate", 0.02 + 0.03 * t, 500),
    metric("completion_distinct_2", 0.94 - 0.1 * t, 0.004),
    metric("duplicate_rate", 0.05 + 0.12 * t),
    metric("distinct_1", 0.21 - 0.05 * t),
    metric("distinct_2", 0.62 - 0.17 * t),
    metric("drift_mean", 6e-7 + 1e-7 * chance(round, 9), 2e-8),
    metric("drift_max", 4e-6),
    metric("drift_kl", 2e-13),
  ];
  if (round === 0) return own;
  return [
    metric("reward_gain", 1.9 * Math.sqrt(t) + 0.35 * t + 0.05 * normal(round, 6), 0.045),
    ...own,
    metric("kl", kl, 0.06 + 0.02 * kl),
    metric("kl_per_token", kl / 11, 0.004),
    metric("reward_difference_mean", 1.7 * Math.sqrt(t), 0.05),
    metric("gold_difference_mean", goldAt(round, rounds) - 2.6, 0.06),
    metric("selection_gold_mean", goldAt(round, rounds) + 0.05, 0.09),
    metric("selection_gold_mean_n", 251),
    metric("report_gold_mean", goldAt(round, rounds) - 0.05, 0.085),
    metric("report_gold_mean_n", 249),
    metric("train_loss", 1.4 - 0.4 * t),
    metric("train_first_loss", 1.7 - 0.4 * t),
    metric("train_steps", 90),
    metric("train_tokens", 412_000),
    metric("train_rewards/accuracies", 0.6 + 0.2 * t),
  ];
}

export function rewardMetrics(round: number, rounds: number): Metric[] {
  const t = part(round, rounds);
  return [
    ...rate("accuracy", Math.min(1, 0.78 - 0.07 * t + 0.01 * normal(round, 1)), 420),
    metric("loss", 0.48 + 0.05 * t, 0.02),
    metric("margin_mean", 1.3 - 0.2 * t, 0.07),
    metric("ece", 0.04 + 0.02 * t),
    metric("ace", 0.05 + 0.02 * t),
    metric("accuracy_change", -0.07 * t, 0.012),
    ...rate("length_accuracy", 0.55, 420),
    ...rate("fresh_accuracy", round === 1 ? 1 : 0.97 - 0.13 * t + 0.01 * normal(round, 2), 100),
    metric("fresh_loss", 0.2 + 0.2 * t, 0.03),
    metric("fresh_ece", 0.03 + 0.03 * t),
    metric("fresh_margin_mean", 2.4 - 0.9 * t, 0.12),
    metric("train_loss", 0.42 + 0.05 * t),
    metric("train_first_loss", 0.71),
    metric("train_accuracy", 0.83 - 0.03 * t),
  ];
}

export function roundOf(round: number, rounds: number): RoundResult {
  return { round, reward: rewardMetrics(round, rounds), policy: policyMetrics(round, rounds) };
}

export function specOf(name: string, rounds: number, seed: number): JobSpec {
  return JobSpec.create({
    name,
    seed,
    rounds,
    policy: { model: "models/stories15m", init: "weights" },
    text: { template: "hh", maxLength: 512, truncationSide: "left" },
    data: {
      sources: ["pairs.jsonl.gz", "more.csv"].map((name, i) => ({ set: "preferences", path: [`input:${hash(9, i)}:${name}`], columns: {}, limit: 0, weight: 2 - i })),
      golden: [`input:${hash(3)}:golden.jsonl.gz`],
      prompts: [`input:${hash(7)}:prompts.jsonl`],
      goldenHoldout: 0.1,
    },
    sampling: { temperature: 1, topP: 1, maxNewTokens: 128, stop: ["\n\nHuman:"] },
    rewardStep: { loss: { oneofKind: "bradleyTerry", bradleyTerry: { margin: false } }, apoWeight: 1, samples: 4, learningRate: 1e-6 },
    policyStep: { method: { oneofKind: "dpo", dpo: { beta: 0.1, pairing: "best_worst", logRatio: "sum", reference: "round_start" } }, samples: 4, learningRate: [5e-6, 2e-6, 9e-7] },
    evaluation: { gold: "letters", metricForBestModel: "gold_mean", klPrompts: 64 },
    resources: { ranks: 4, device: "cuda", precision: "bf16", sharding: "zero1" },
    labels: { team: "alignment", env: "prod" },
  });
}

const KINDS: Record<string, string> = {
  sft: "policy",
  generate: "samples",
  train_reward: "reward",
  evaluate_reward: "evaluation",
  score: "scores",
  ref_log_probs: "ref_log_probs",
  train_policy: "policy",
  evaluate_policy: "evaluation",
};

export function artifactOf(jobId: string, phase: PhasePlan): Artifact {
  const kind = KINDS[phase.kind] ?? "samples";
  const name = kind === "policy" || kind === "reward" ? `${kind}@${phase.round}` : `${kind}/${phase.id}`;
  const files = kind === "policy" || kind === "reward" ? ["config.json", "model.safetensors", "tokenizer.json"] : ["000.pb", "001.pb"];
  const objects = files.map((path, i) => ({
    key: `jobs/${jobId}/artifacts/${phase.id}/1/${path}`,
    size: path === "model.safetensors" ? 60_816_028n : BigInt(1200 + 991 * i),
    blake3: hash(phase.round, i, name.length),
    path,
  }));
  return { name, kind, jobId, phase: phase.id, round: phase.round, attempt: 1, objects };
}

export interface JobOptions {
  id: string;
  name: string;
  rounds: number;
  /** Number of completed rounds. */
  done: number;
  state: JobState;
  submitted: number;
  seed?: number;
  /** Number of completed phases in the next round. */
  further?: number;
}

export function jobOf({ id, name, rounds, done, state, submitted, seed = 7, further = 0 }: JobOptions): Job {
  const phases = planOf(rounds);
  const ended = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED].includes(state);
  const phasesDone = state === JobState.SUCCEEDED ? phases.length : state === JobState.QUEUED ? 0 : 2 + done * WORKS.length + further;
  const results = Array.from({ length: done }, (_, i) => roundOf(i + 1, rounds));
  const gold = (result: RoundResult) => result.policy.find((one) => one.name === "selection_gold_mean")!.value;
  const best = results.reduce((best, one) => (best === undefined || gold(one) > gold(best) ? one : best), undefined as RoundResult | undefined);
  return Job.create({
    id,
    name,
    state,
    spec: specOf(name, rounds, seed),
    plan: {
      phases,
      datasets: [
        {
          name: "preferences",
          rows: 3327n,
          badRows: 2n,
          firstBad: ["pairs.jsonl.gz:17: the answer is empty"],
          ignoredColumns: ["source"],
          sources: [
            { name: "pairs.jsonl.gz", rows: 2218n, weight: 2, dropped: [{ reason: "max_prompt_tokens", rows: 12n }] },
            { name: "more.csv", rows: 1109n, weight: 1, dropped: [] },
          ],
        },
        { name: "golden", rows: 634n, sources: [{ name: "golden.jsonl.gz", rows: 634n, dropped: [] }] },
        { name: "prompts", rows: 2000n },
      ],
    },
    revision: BigInt(1 + phasesDone * 2),
    submittedAt: at(submitted),
    ...(state === JobState.QUEUED ? {} : { startedAt: at(submitted + 4000) }),
    ...(ended ? { endedAt: at(submitted + 4000 + phasesDone * 40_000) } : {}),
    phase: ended || state === JobState.QUEUED ? "" : (phases[phasesDone]?.id ?? ""),
    phasesDone,
    attempt: state === JobState.QUEUED ? 0 : 1,
    rounds: results,
    start: done > 0 ? policyMetrics(0, rounds) : [],
    artifacts: phases.slice(0, phasesDone).map((phase) => artifactOf(id, phase)),
    bestRound: best?.round ?? 0,
    phasesTotal: phases.length,
    specBlake3: hash(1, rounds, seed),
    labels: { team: "alignment", env: "prod" },
    owner: "ada",
    tenant: "speech",
  });
}
