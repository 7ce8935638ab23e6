// A stream of a job's events that survives broken connections.
import type { JobEvent } from "../../gen/foil/v1/jobs.js";
import { isEnded } from "../model/job.js";
import { backoff, pause } from "./pause.js";
import { Problem, problemOf } from "./problem.js";
import type { WatchObserver } from "./source.js";

type Open = (afterRevision: bigint, signal: AbortSignal) => AsyncIterable<JobEvent>;
type Pause = (ms: number, signal: AbortSignal) => Promise<void>;

/** Reads events until the job's last one. A broken stream continues after the last revision received. */
export async function follow(open: Open, observer: WatchObserver, signal: AbortSignal, wait: Pause = pause): Promise<void> {
  let [revision, tries] = [0n, 0];
  while (!signal.aborted) {
    let problem: Problem;
    try {
      for await (const event of open(revision, signal)) {
        if (signal.aborted) return;
        tries = 0;
        observer.connected();
        if (event.revision > revision) revision = event.revision;
        observer.event(event);
        if (event.event.oneofKind === "job" && isEnded(event.event.job)) return;
      }
      problem = new Problem("unavailable", "The stream of events ended early.");
    } catch (error) {
      problem = problemOf(error);
    }
    if (signal.aborted) return;
    if (!problem.passes) return observer.failed(problem);
    const ms = Math.max(backoff(tries), problem.retryAfter ?? 0);
    tries += 1;
    observer.lost(problem, Date.now() + ms);
    await wait(ms, signal);
  }
}
