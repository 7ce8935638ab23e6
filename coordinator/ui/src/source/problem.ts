// The reason why a call failed, in the form that the pages show.
import { base64decode } from "@protobuf-ts/runtime";
import { RpcError } from "@protobuf-ts/runtime-rpc";
import { ErrorInfo, RetryInfo, Status } from "../../gen/google/rpc/error_details.js";

export type ProblemKind =
  | "unauthenticated"
  | "forbidden"
  | "not_found"
  | "standby"
  | "unavailable"
  | "busy"
  | "invalid"
  | "unsupported"
  | "cancelled"
  | "other";

export class Problem extends Error {
  constructor(
    readonly kind: ProblemKind,
    message: string,
    /** The leader's address, if a standby knows it. */
    readonly leader?: string,
    /** Milliseconds until the next retry. */
    readonly retryAfter?: number,
  ) {
    super(message);
  }

  /** Whether the same call may succeed later. */
  get passes(): boolean {
    return ["standby", "unavailable", "busy"].includes(this.kind);
  }
}

const KINDS: Record<string, ProblemKind> = {
  UNAUTHENTICATED: "unauthenticated",
  PERMISSION_DENIED: "forbidden",
  NOT_FOUND: "not_found",
  UNAVAILABLE: "unavailable",
  DEADLINE_EXCEEDED: "unavailable",
  ABORTED: "unavailable",
  // A connection that broke within a message.
  DATA_LOSS: "unavailable",
  RESOURCE_EXHAUSTED: "busy",
  INVALID_ARGUMENT: "invalid",
  FAILED_PRECONDITION: "invalid",
  OUT_OF_RANGE: "invalid",
  UNIMPLEMENTED: "unsupported",
  CANCELLED: "cancelled",
};

/** An http(s) origin, without path, user or anything else that an address may contain. */
export function originOf(address: string | undefined): string | undefined {
  if (!address) return undefined;
  try {
    const url = new URL(address);
    return url.protocol === "http:" || url.protocol === "https:" ? url.origin : undefined;
  } catch {
    return undefined;
  }
}

interface Details {
  info?: ErrorInfo;
  retryAfter?: number;
}

const LONGEST_WAIT = 60_000;

/** The details of a status, except damaged ones. */
function detailsOf(error: RpcError): Details {
  const trailer = error.meta["grpc-status-details-bin"];
  if (typeof trailer !== "string") return {};
  const found: Details = {};
  try {
    for (const { typeUrl, value } of Status.fromBinary(base64decode(trailer)).details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) found.info = ErrorInfo.fromBinary(value);
      if (typeUrl.endsWith("/google.rpc.RetryInfo")) {
        const { seconds, nanos } = RetryInfo.fromBinary(value).retryDelay ?? { seconds: 0n, nanos: 0 };
        found.retryAfter = Math.min(LONGEST_WAIT, Math.max(0, Number(seconds) * 1000 + nanos / 1e6));
      }
    }
  } catch {
    // The status itself is sufficient.
  }
  return found;
}

/** Decodes a status message, which is percent-encoded on the wire. */
function decoded(message: string): string {
  try {
    return decodeURIComponent(message);
  } catch {
    return message;
  }
}

export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (!(error instanceof RpcError)) return new Problem("other", error instanceof Error ? error.message : String(error));
  const { info, retryAfter } = detailsOf(error);
  if (error.code === "UNAVAILABLE" && info?.reason === "NOT_LEADER") {
    return new Problem("standby", decoded(error.message), originOf(info.metadata["leader"]), retryAfter);
  }
  // Answers of the coordinator have metadata; network failures have none.
  const unreached = error.code === "INTERNAL" && Object.keys(error.meta).length === 0;
  if (unreached) return new Problem("unavailable", "The coordinator does not answer.", undefined, retryAfter);
  return new Problem(KINDS[error.code] ?? "other", decoded(error.message) || "The call failed without a message.", undefined, retryAfter);
}
