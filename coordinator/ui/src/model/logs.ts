// Lines of ranks' logs: JSON objects with time, level, target, message and additional fields.
import type { RankLogLine } from "../../gen/foil/v1/jobs.js";

export interface LogLine {
  /** Increases along the log. */
  number: number;
  attempt: number;
  rank: number;
  /** Milliseconds since 1970. */
  at: number | undefined;
  level: string;
  message: string;
  /** Additional fields: name and value. */
  fields: [string, string][];
  dropped: bigint;
}

const KNOWN = new Set(["time", "level", "message", "target"]);

function text(value: unknown): string {
  if (typeof value === "number") return String(Number(value.toPrecision(7)));
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** A line in display form. A line that is not such an object becomes its own message. */
export function logLine(line: RankLogLine, number: number): LogLine {
  const found: LogLine = { number, attempt: line.attempt, rank: line.rank, at: undefined, level: "", message: line.line, fields: [], dropped: line.droppedBytes };
  let json: unknown;
  try {
    json = JSON.parse(line.line);
  } catch {
    return found;
  }
  if (json === null || typeof json !== "object" || Array.isArray(json)) return found;
  const object = json as Record<string, unknown>;
  return {
    ...found,
    at: typeof object["time"] === "number" ? object["time"] * 1000 : undefined,
    level: typeof object["level"] === "string" ? object["level"].toLowerCase() : "",
    message: object["message"] === undefined ? "" : text(object["message"]),
    fields: Object.entries(object).flatMap(([name, value]): [string, string][] => (KNOWN.has(name) ? [] : [[name, text(value)]])),
  };
}

/** The last `most` lines of two lists. */
export function joined(before: LogLine[], more: LogLine[], most: number): LogLine[] {
  const all = before.concat(more);
  return all.length > most ? all.slice(all.length - most) : all;
}
