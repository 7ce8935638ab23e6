// The timeline: phases as bars over time, with one lane for each kind of work.
import type { Timestamp } from "../../gen/google/protobuf/timestamp.js";
import { SpanOutcome, type TimelineAttempt, type TimelineSpan } from "../../gen/foil/v1/results.js";
import type { Entry } from "./feed.js";
import { phaseParts } from "./job.js";
import { millis } from "./time.js";

export type Outcome = "running" | "committed" | "broken";

export interface Span {
  phase: string;
  round: number | undefined;
  lane: string;
  attempt: number;
  from: number;
  /** Undefined while the phase is running. */
  to: number | undefined;
  outcome: Outcome;
  failureClass: string;
  failure: string;
  resumedAfterStep: bigint;
}

const OUTCOMES: Record<SpanOutcome, Outcome> = {
  [SpanOutcome.UNSPECIFIED]: "broken",
  [SpanOutcome.RUNNING]: "running",
  [SpanOutcome.COMMITTED]: "committed",
  [SpanOutcome.INTERRUPTED]: "broken",
};

/** A span with the reason why its attempt ended, if that interrupted it. */
export function spanOf(span: TimelineSpan, attempts: TimelineAttempt[]): Span {
  const ended = span.outcome === SpanOutcome.INTERRUPTED ? attempts.find((one) => one.attempt === span.attempt) : undefined;
  const { round, work } = phaseParts(span.phase);
  const from = millis(span.startedAt ?? ({ seconds: 0n, nanos: 0 } as Timestamp));
  return {
    phase: span.phase,
    round,
    lane: work,
    attempt: span.attempt,
    from,
    to: millis(span.endedAt),
    outcome: OUTCOMES[span.outcome] ?? "broken",
    failureClass: ended?.endClass ?? "",
    failure: ended?.endMessage ?? "",
    resumedAfterStep: span.resumedAfterStep,
  };
}

/** Spans derived from events, if there is no timeline. A phase that starts again was interrupted. */
export function spansOf(entries: Entry[], ended: number | undefined): Span[] {
  const spans: Span[] = [];
  let open: Span | undefined;
  const close = (to: number, outcome: Outcome) => {
    if (!open) return;
    open.to = to;
    open.outcome = outcome;
    open = undefined;
  };
  for (const entry of entries) {
    if (entry.kind === "started" && entry.phase !== undefined) {
      close(entry.at, "broken");
      const { round, work } = phaseParts(entry.phase);
      open = {
        phase: entry.phase,
        round,
        lane: work,
        attempt: entry.attempt ?? 0,
        from: entry.at,
        to: undefined,
        outcome: "running",
        failureClass: "",
        failure: "",
        resumedAfterStep: 0n,
      };
      spans.push(open);
    } else if (entry.kind === "committed") {
      close(entry.at, "committed");
    }
  }
  if (ended !== undefined) close(ended, "broken");
  return spans;
}

export interface Lanes {
  lanes: { name: string; spans: Span[] }[];
  from: number;
  to: number;
  /** First start of each attempt after the first one. */
  attempts: { attempt: number; at: number }[];
}

/** Lanes in the order in which their work first started. */
export function lanesOf(spans: Span[], now: number): Lanes {
  const lanes = new Map<string, Span[]>();
  const attempts = new Map<number, number>();
  let [from, to] = [Infinity, -Infinity];
  for (const span of spans) {
    const lane = lanes.get(span.lane);
    if (lane) lane.push(span);
    else lanes.set(span.lane, [span]);
    from = Math.min(from, span.from);
    to = Math.max(to, span.to ?? now);
    attempts.set(span.attempt, Math.min(attempts.get(span.attempt) ?? Infinity, span.from));
  }
  const later = [...attempts].sort(([a], [b]) => a - b).slice(1);
  return {
    lanes: [...lanes].map(([name, spans]) => ({ name, spans })),
    from: Number.isFinite(from) ? from : now,
    to: Number.isFinite(to) ? Math.max(to, from + 1) : now + 1,
    attempts: later.map(([attempt, at]) => ({ attempt, at })),
  };
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

/** Round times between two ends, in milliseconds, `most` of them at most. */
export function ticks(from: number, to: number, most: number): { at: number; step: number }[] {
  const seconds = (to - from) / 1000;
  const step = STEPS.find((one) => seconds / one <= most) ?? Math.ceil(seconds / most / 604800) * 604800;
  const found = [];
  const offset = new Date(from).getTimezoneOffset() * 60_000;
  const first = Math.ceil((from - offset) / (step * 1000)) * step * 1000 + offset;
  for (let at = first; at <= to && found.length <= most; at += step * 1000) found.push({ at, step });
  return found;
}
