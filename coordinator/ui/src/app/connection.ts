// The state of the connection to the coordinator, shared by the whole page.
import type { Problem } from "../source/problem.js";
import type { Source } from "../source/source.js";
import { store } from "./store.js";

export type Connection =
  | { state: "connected" }
  | { state: "lost"; since: number; message: string; retryAt?: number }
  | { state: "standby"; since: number; leader: string | undefined; message: string };

export const connection = store<Connection>({ state: "connected" });

/** Directory of the local run that the pages show, quoted for a shell; empty on the pages of a service. */
export const runDirectory = store("");

/** The option that names these pages' coordinator in a command; empty for a report. */
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
