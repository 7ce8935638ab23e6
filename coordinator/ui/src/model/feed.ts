// The state of a job, derived from its events one by one.
import type { Job, JobEvent } from "../../gen/foil/v1/jobs.js";
import type { PhaseTime, Running } from "./eta.js";
import { phaseFraction } from "./job.js";
import { millis } from "./time.js";

/** An event of the log, worded for the timeline. */
export interface Entry {
  at: number;
  kind: "started" | "committed" | "checkpoint" | "state" | "info" | "warning" | "error";
  text: string;
  phase?: string;
  attempt?: number;
  /** The step of a checkpoint. */
  step?: bigint;
  bytes?: bigint;
}

export interface JobView {
  job: Job;
  /** Oldest first. Only the last ones are kept if there are many. */
  entries: Entry[];
  /** Committed phases with their times, in order. */
  done: PhaseTime[];
  running: Running | undefined;
  /** Start of the running phase in this attempt, in milliseconds since 1970. */
  runningSince: number | undefined;
}

const MAX_ENTRIES = 2000;

export function emptyView(job: Job): JobView {
  return { job, entries: [], done: [], running: undefined, runningSince: undefined };
}

function appended(entries: Entry[], entry: Entry): Entry[] {
  const last = entries[entries.length - 1];
  if (last && last.kind === entry.kind && last.text === entry.text && last.at === entry.at) return entries;
  return [...(entries.length >= MAX_ENTRIES ? entries.slice(1 - MAX_ENTRIES) : entries), entry];
}

/** The view after an event. `now` is the time of progress, since progress events may have none. */
export function fold(view: JobView | undefined, event: JobEvent, now: number): JobView | undefined {
  const at = millis(event.at) ?? now;
  if (event.event.oneofKind === "job") {
    const job = event.event.job;
    if (!view) return emptyView(job);
    return { ...view, job: keepParts(view.job, job) };
  }
  if (!view) return undefined;
  const add = (entry: Omit<Entry, "at">) => appended(view.entries, { at, ...entry });
  switch (event.event.oneofKind) {
    case "phaseStarted": {
      const { phase, attempt } = event.event.phaseStarted;
      const entries = add({ kind: "started", text: "started", phase, attempt });
      return { ...view, job: { ...view.job, phase, attempt }, entries, running: undefined, runningSince: at };
    }
    case "phaseProgress": {
      const progress = event.event.phaseProgress;
      const since = view.runningSince ?? at;
      const seconds = (now - since) / 1000;
      const before = view.running;
      const running =
        before && before.phase === progress.phase ? { ...before, seconds } : { phase: progress.phase, seconds, from: seconds < 5 ? 0 : phaseFraction(progress) };
      // Measured from the first visible progress if that came long after the start.
      const runningSince = before || seconds < 5 ? since : now;
      return { ...view, job: { ...view.job, phase: progress.phase, progress }, running: { ...running, seconds: (now - runningSince) / 1000 }, runningSince };
    }
    case "phaseCommitted": {
      const { phase, seconds } = event.event.phaseCommitted;
      if (view.done.some((one) => one.phase === phase)) return view;
      const done = [...view.done, { phase, seconds }];
      const phasesDone = Math.max(view.job.phasesDone, done.length);
      const entries = add({ kind: "committed", text: "committed", phase });
      return { ...view, job: { ...view.job, phasesDone }, entries, done, running: undefined, runningSince: undefined };
    }
    case "checkpointCommitted": {
      const { phase, step, attempt, bytes } = event.event.checkpointCommitted;
      return { ...view, entries: add({ kind: "checkpoint", text: `checkpoint after step ${step}`, phase, attempt, step, bytes }) };
    }
    case "notice": {
      const { level, text } = event.event.notice;
      const kind = level === "warning" || level === "error" ? level : "info";
      return { ...view, entries: add({ kind, text }) };
    }
    default:
      return view;
  }
}

/** The later of two states of a job, completed with the parts that its message omits. */
function keepParts(before: Job, job: Job): Job {
  const parts = new Set(job.omitted);
  if (parts.size === 0) return job;
  return {
    ...job,
    ...(parts.has("plan") && before.plan ? { plan: before.plan } : {}),
    ...(parts.has("rounds") ? { rounds: before.rounds } : {}),
    ...(parts.has("artifacts") ? { artifacts: before.artifacts } : {}),
  };
}
