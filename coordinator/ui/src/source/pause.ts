// Waits between retries.

const FIRST = 500;
const LONGEST = 15_000;

/** Milliseconds before the nth retry (from 0): doubled each time, with up to a quarter at random. */
export function backoff(tries: number, random = Math.random()): number {
  return Math.min(LONGEST, FIRST * 2 ** Math.min(tries, 10)) * (1 + random / 4);
}

/** Resolves after a time, when the network or the tab comes back, or when the signal aborts. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      document.removeEventListener("visibilitychange", whenVisible);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const whenVisible = () => document.visibilityState === "visible" && done();
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    document.addEventListener("visibilitychange", whenVisible);
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}
