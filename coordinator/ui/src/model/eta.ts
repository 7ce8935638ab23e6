// Estimates the remaining time of a job from its completed phases.
import type { Job } from "../../gen/foil/v1/jobs.js";
import { isEnded, phaseFraction, phaseParts } from "./job.js";

export interface PhaseTime {
  phase: string;
  seconds: number;
}

/** The start of the running phase and its first known progress. */
export interface Running {
  phase: string;
  /** Seconds since it began in this attempt. */
  seconds: number;
  /** Done part at that beginning: more than 0 if it continued from a checkpoint. */
  from: number;
}

export interface Eta {
  /** Remaining time of the running phase; absent until some of it is done. */
  phase?: number;
  /** Remaining time of the whole job; absent until a completed round shows how long each of its phases takes. */
  job?: number;
}

const MIN_FRACTION = 0.02;
const MIN_SECONDS = 2;

/** Assumes that a pending phase takes as long as the last phase of the same work in an earlier round. */
export function eta(job: Job, done: PhaseTime[], running: Running | undefined): Eta {
  if (isEnded(job)) return {};
  const last = new Map(done.map(({ phase, seconds }) => [phaseParts(phase).work, seconds]));
  const found: Eta = {};
  const fraction = job.progress?.phase === job.phase ? phaseFraction(job.progress) : 0;
  let current: number | undefined;
  if (running && running.phase === job.phase && fraction - running.from >= MIN_FRACTION && running.seconds >= MIN_SECONDS) {
    current = ((1 - fraction) * running.seconds) / (fraction - running.from);
    found.phase = current;
  } else {
    const before = last.get(phaseParts(job.phase).work);
    current = before === undefined ? undefined : before * (1 - fraction);
  }
  const phases = job.plan?.phases ?? [];
  if (phases.length === 0 || current === undefined || job.waiting) return found;
  const left = phases.slice(job.phasesDone + 1).map((phase) => last.get(phaseParts(phase.id).work));
  if (left.every((seconds) => seconds !== undefined)) {
    found.job = left.reduce<number>((sum, seconds) => sum + (seconds ?? 0), current);
  }
  return found;
}
