// The view of one job, kept up to date by its event stream.
import { useEffect, useState } from "preact/hooks";
import { isEnded } from "../model/job.js";
import { fold, type JobView } from "../model/feed.js";
import type { Problem } from "../source/problem.js";
import type { Source } from "../source/source.js";

export interface Feed {
  view: JobView | undefined;
  /** Why there is no view, if there is none. */
  problem: Problem | undefined;
  /** Increases with every change of results: committed phases, and the end. */
  version: number;
}

/** Minimum time between two rendered states in milliseconds, so that a history of thousands of events renders once. */
const FRAME_MS = 100;
/** Delay between a commit and the request for its results, so that commits in quick succession share one request. */
const REFRESH_MS = 250;

export function useFeed(source: Source, id: string): Feed {
  const [feed, setFeed] = useState<Feed>({ view: undefined, problem: undefined, version: 0 });
  useEffect(() => {
    const stop = new AbortController();
    let [view, version, timer]: [JobView | undefined, number, ReturnType<typeof setTimeout> | undefined] = [undefined, 0, undefined];
    let [shown, refreshing, stale] = [false, false, false];
    let refreshTimer: ReturnType<typeof setTimeout> | undefined;
    const show = () => {
      timer = undefined;
      shown = true;
      if (!stop.signal.aborted) setFeed({ view, problem: undefined, version });
    };
    const later = () => {
      timer ??= setTimeout(show, shown ? FRAME_MS : 0);
    };
    // Events contain neither rounds nor artifacts; those come with the whole job.
    const refresh = async () => {
      refreshTimer = undefined;
      if (refreshing) {
        stale = true;
        return;
      }
      refreshing = true;
      do {
        stale = false;
        try {
          const job = await source.job(id, stop.signal);
          if (view && job.revision >= view.job.revision) view = { ...view, job: { ...job, progress: job.progress ?? view.job.progress } as typeof job };
          version += 1;
          later();
        } catch {
          // The stream reports a lost connection, and the next commit requests the job again.
        }
      } while (stale && !stop.signal.aborted);
      refreshing = false;
    };
    const observer = {
      event(event: Parameters<typeof fold>[1]) {
        view = fold(view, event, Date.now());
        const { oneofKind: kind } = event.event;
        const ended = event.event.oneofKind === "job" && isEnded(event.event.job);
        const partial = event.event.oneofKind === "job" && event.event.job.omitted.length > 0;
        if (kind === "phaseCommitted" || ended || partial) refreshTimer ??= setTimeout(refresh, REFRESH_MS);
        later();
      },
      connected() {},
      lost() {},
      failed(problem: Problem) {
        if (!stop.signal.aborted) setFeed({ view, problem, version });
      },
    };
    setFeed({ view: undefined, problem: undefined, version: 0 });
    source.watch(id, observer, stop.signal);
    return () => {
      stop.abort();
      clearTimeout(timer);
      clearTimeout(refreshTimer);
    };
  }, [source, id]);
  return feed;
}
