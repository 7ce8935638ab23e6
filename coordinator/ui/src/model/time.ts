// Converts protobuf timestamps to milliseconds since 1970.
import type { Timestamp } from "../../gen/google/protobuf/timestamp.js";

export function millis(at: Timestamp): number;
export function millis(at: Timestamp | undefined): number | undefined;
export function millis(at: Timestamp | undefined): number | undefined {
  return at && Number(at.seconds) * 1000 + at.nanos / 1e6;
}
