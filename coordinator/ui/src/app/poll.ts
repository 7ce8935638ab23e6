// Results of calls, requested once or periodically.
import { useEffect, useRef, useState } from "preact/hooks";
import { backoff, pause } from "../source/pause.js";
import { Problem, problemOf } from "../source/problem.js";

export interface Answer<T> {
  value: T | undefined;
  /** Why there is no value or no newer one. */
  problem: Problem | undefined;
  loading: boolean;
  /** Repeats the call. */
  again: () => void;
}

interface Options {
  /** Milliseconds between two calls. Without it, there is only one call. */
  every?: number | undefined;
  /** Keeps the last value until the call with new arguments answers. */
  keep?: boolean;
}

/** The result of `call`, which is repeated when `key` changes. Hidden tabs make no calls. */
export function useAnswer<T>(call: (signal: AbortSignal) => Promise<T>, key: unknown[], { every, keep = true }: Options = {}): Answer<T> {
  const [state, setState] = useState<{ value: T | undefined; problem: Problem | undefined; loading: boolean }>({ value: undefined, problem: undefined, loading: true });
  const [version, setVersion] = useState(0);
  const latest = useRef(call);
  latest.current = call;
  useEffect(() => {
    const stop = new AbortController();
    setState((before) => ({ value: keep ? before.value : undefined, problem: undefined, loading: true }));
    const run = async () => {
      for (let tries = 0; !stop.signal.aborted; ) {
        if (document.visibilityState === "hidden" && every !== undefined) {
          await pause(60_000, stop.signal);
          continue;
        }
        let wait = every;
        try {
          const value = await latest.current(stop.signal);
          if (stop.signal.aborted) return;
          tries = 0;
          setState({ value, problem: undefined, loading: false });
        } catch (error) {
          if (stop.signal.aborted) return;
          const problem = problemOf(error);
          setState((before) => ({ value: before.value, problem, loading: false }));
          if (!problem.passes) return;
          wait = Math.max(backoff(tries), problem.retryAfter ?? 0, every ?? 0);
          tries += 1;
        }
        if (wait === undefined) return;
        await pause(wait, stop.signal);
      }
    };
    void run();
    return () => stop.abort();
  }, [...key, version, every, keep]);
  return { ...state, again: () => setVersion(version + 1) };
}
