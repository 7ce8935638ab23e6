// The state of a job in the wording of the pages.
import { JobState, type Job, type PhaseProgress } from "../../gen/foil/v1/jobs.js";
import { bytes, count, counted } from "./format.js";
import { millis } from "./time.js";

const STATES: Record<JobState, string> = {
  [JobState.UNSPECIFIED]: "unknown",
  [JobState.QUEUED]: "queued",
  [JobState.RUNNING]: "running",
  [JobState.CANCELLING]: "cancelling",
  [JobState.SUCCEEDED]: "succeeded",
  [JobState.FAILED]: "failed",
  [JobState.CANCELLED]: "cancelled",
};

export const ALL_STATES = [
  JobState.QUEUED,
  JobState.RUNNING,
  JobState.CANCELLING,
  JobState.SUCCEEDED,
  JobState.FAILED,
  JobState.CANCELLED,
];

/** A state in lower case: succeeded, failed, … */
export function stateName(state: JobState): string {
  return STATES[state] ?? "unknown";
}

export function stateNamed(name: string): JobState | undefined {
  return ALL_STATES.find((state) => STATES[state] === name);
}

export function isEnded(job: Job): boolean {
  return [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED].includes(job.state);
}

/** Number of phases in the job's plan. */
export function phasesTotal(job: Job): number {
  return Math.max(job.phasesTotal, job.plan?.phases.length ?? 0);
}

/** Completed share of the running phase, from 0 to 1. */
export function phaseFraction(progress: PhaseProgress | undefined): number {
  if (!progress || progress.total === 0n) return 0;
  return Math.min(1, Number(progress.done) / Number(progress.total));
}

/** Completed share of the job, from 0 to 1. All phases count the same. */
export function jobFraction(job: Job): number {
  if (job.state === JobState.SUCCEEDED) return 1;
  const total = phasesTotal(job);
  if (total === 0) return 0;
  const running = job.progress && job.progress.phase === job.phase ? phaseFraction(job.progress) : 0;
  return Math.min(1, (job.phasesDone + running) / total);
}

/** `37 of 96 prompts`, `step 12 of 40`, `761 KiB of 1.12 MiB loaded`. */
export function progressText({ done, total, unit }: PhaseProgress): string {
  if (unit === "steps") return `step ${count(done)} of ${count(total)}`;
  const size = unit.startsWith("bytes ") ? bytes : count;
  return `${size(done)} of ${size(total)} ${unit.replace("bytes ", "")}`;
}

/** The round and the work of a phase's id: `r02.policy.generate` is round 2, policy generate. */
export function phaseParts(id: string): { round: number | undefined; work: string } {
  const found = /^r(\d+)\.(.+)$/.exec(id);
  if (!found) return { round: undefined, work: id };
  return { round: Number(found[1]), work: found[2]!.replaceAll(".", " ").replaceAll("_", " ") };
}

/** Seconds that a job has been running or ran, from its first start. */
export function runSeconds(job: Job, now: number): number | undefined {
  const start = millis(job.startedAt);
  if (start === undefined) return undefined;
  return Math.max(0, ((millis(job.endedAt) ?? now) - start) / 1000);
}

/** A specification in one line: `2 rounds of rejection against bradley_terry, 2 ranks on cpu`. */
export function outline(job: Job): string {
  const spec = job.spec;
  if (!spec) return "";
  const snake = (name: string | undefined) => name?.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const method = snake(spec.policyStep?.method.oneofKind) ?? "rejection";
  const loss = snake(spec.rewardStep?.loss.oneofKind) ?? "bradley_terry";
  const ranks = counted(spec.resources?.ranks ?? 1, "rank");
  return `${counted(spec.rounds ?? 3, "round")} of ${method} against ${loss}, ${ranks} on ${spec.resources?.device || "cpu"}`;
}
