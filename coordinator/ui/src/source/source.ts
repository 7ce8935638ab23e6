// The source of the pages' data: a coordinator, or the report embedded in the page.
import type { PartialMessage } from "@protobuf-ts/runtime";
import type { WhoAmIResponse } from "../../gen/foil/v1/access.js";
import type { Agent } from "../../gen/foil/v1/agents.js";
import type { Job, JobEvent, ListJobsRequest, ListJobsResponse, LogsRequest, LogsResponse } from "../../gen/foil/v1/jobs.js";
import type {
  GetCompletionRequest,
  GetCompletionResponse,
  GetDistributionsRequest,
  GetDistributionsResponse,
  GetTimelineResponse,
  ListCompletionsRequest,
  ListCompletionsResponse,
  PhaseSteps,
} from "../../gen/foil/v1/results.js";
import type { Problem } from "./problem.js";

/** Observes a job until it ends. */
export interface WatchObserver {
  event(event: JobEvent): void;
  connected(): void;
  /** The stream broke and will be reopened at the given time, in milliseconds since 1970. */
  lost(problem: Problem, retryAt: number): void;
  /** The stream cannot be reopened. */
  failed(problem: Problem): void;
}

export interface StepsQuery {
  jobId: string;
  /** If empty, all phases that have started. */
  phases?: string[];
  maxPoints: number;
}

/** The calls of the pages, which reject with a Problem. */
export interface Source {
  readonly kind: "live" | "report";
  whoAmI(signal?: AbortSignal): Promise<WhoAmIResponse>;
  listJobs(request: PartialMessage<ListJobsRequest>, signal?: AbortSignal): Promise<ListJobsResponse>;
  /** A job with all its parts. */
  job(id: string, signal?: AbortSignal): Promise<Job>;
  /** Watches a job, reconnecting as needed, until the signal aborts or the job ends. */
  watch(id: string, observer: WatchObserver, signal: AbortSignal): void;
  agents(signal?: AbortSignal): Promise<Agent[]>;
  logs(request: PartialMessage<LogsRequest>, signal: AbortSignal): AsyncIterable<LogsResponse>;
  steps(query: StepsQuery, signal?: AbortSignal): Promise<PhaseSteps[]>;
  completions(request: PartialMessage<ListCompletionsRequest>, signal?: AbortSignal): Promise<ListCompletionsResponse>;
  /** Whether the tokens of a completion are available. */
  hasTokens(request: PartialMessage<GetCompletionRequest>): boolean;
  completion(request: PartialMessage<GetCompletionRequest>, signal?: AbortSignal): Promise<GetCompletionResponse>;
  distributions(request: PartialMessage<GetDistributionsRequest>, signal?: AbortSignal): Promise<GetDistributionsResponse>;
  timeline(jobId: string, signal?: AbortSignal): Promise<GetTimelineResponse>;
}
