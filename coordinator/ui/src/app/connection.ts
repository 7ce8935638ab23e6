// Whether the coordinator answers, as the whole page says it.
import type { Problem } from "../source/problem.js";
import type { Source } from "../source/source.js";
import { store } from "./store.js";

export type Connection =
  | { state: "connected" }
  | { state: "lost"; since: number; message: string; retryAt?: number }
  | { state: "standby"; since: number; leader: string | undefined; message: string };

export const connection = store<Connection>({ state: "connected" });

/** Directory of the local run that the pages are of, as a shell reads it; empty on the pages of a service. */
export const runDirectory = store("");

/** Names the coordinator of these pages to a command; a report has none. */
export function option({ kind }: Source): string {
  return kind === "live" ? ` --coordinator ${location.origin}` : "";
}

export function connected() {
  if (connection.get().state !== "connected") connection.set({ state: "connected" });
}

export function disconnected(problem: Problem, retryAt?: number) {
  const before = connection.get();
  const since = before.state === "connected" ? Date.now() : before.since;
  if (problem.kind === "standby") {
    const leader = problem.leader === location.origin ? undefined : problem.leader;
    connection.set({ state: "standby", since, leader, message: problem.message });
  } else {
    connection.set({ state: "lost", since, message: problem.message, ...(retryAt === undefined ? {} : { retryAt }) });
  }
}
