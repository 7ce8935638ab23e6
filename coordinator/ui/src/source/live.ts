// The coordinator that served the page, over gRPC-Web.
import { GrpcWebFetchTransport } from "@protobuf-ts/grpcweb-transport";
import type { RpcOptions } from "@protobuf-ts/runtime-rpc";
import { AccessClient } from "../../gen/foil/v1/access.client.js";
import { AgentsClient } from "../../gen/foil/v1/agents.client.js";
import { JobsClient } from "../../gen/foil/v1/jobs.client.js";
import { ListJobsRequest, LogsRequest, type Job } from "../../gen/foil/v1/jobs.js";
import { ResultsClient } from "../../gen/foil/v1/results.client.js";
import { GetCompletionRequest, GetDistributionsRequest, GetStepsRequest, ListCompletionsRequest } from "../../gen/foil/v1/results.js";
import { connected, disconnected } from "../app/connection.js";
import { bearer, requireSignIn } from "../app/session.js";
import { allPages, joinArtifacts } from "./parts.js";
import { Problem, problemOf } from "./problem.js";
import type { Source } from "./source.js";
import { follow } from "./watch.js";

const DEADLINE_MS = 20_000;

/** Reports the outcome of a call to the whole page. */
function note(problem: Problem | undefined) {
  if (!problem) return connected();
  if (problem.kind === "unauthenticated") requireSignIn(problem.message);
  else if (problem.kind === "unavailable" || problem.kind === "standby") disconnected(problem);
}

/** Makes a short call with a deadline. */
async function called<T>(signal: AbortSignal | undefined, call: (options: RpcOptions) => Promise<T>): Promise<T> {
  const deadline = AbortSignal.timeout(DEADLINE_MS);
  try {
    const answer = await call({ ...credentials(), abort: signal ? AbortSignal.any([signal, deadline]) : deadline });
    note(undefined);
    return answer;
  } catch (error) {
    const late = deadline.aborted && !signal?.aborted;
    const problem = late ? new Problem("unavailable", "The coordinator did not answer in time.") : problemOf(error);
    if (!signal?.aborted) note(problem);
    throw problem;
  }
}

function credentials(): RpcOptions {
  const token = bearer();
  return token === undefined ? {} : { meta: { authorization: `Bearer ${token}` } };
}

/** Fetches the parts that are too large for one message, page by page. */
async function complete(jobs: JobsClient, job: Job, options: RpcOptions): Promise<Job> {
  const request = (pageToken: string) => ({ jobId: job.id, pageSize: 0, pageToken });
  for (const part of job.omitted) {
    if (part === "plan" && job.plan) {
      job.plan.phases = await allPages(async (token) => {
        const page = await jobs.listPhases(request(token), options).response;
        return { items: page.phases, next: page.nextPageToken };
      });
    } else if (part === "rounds") {
      job.rounds = await allPages(async (token) => {
        const page = await jobs.listRounds(request(token), options).response;
        return { items: page.rounds, next: page.nextPageToken };
      });
    } else if (part === "artifacts") {
      const parts = await allPages(async (token) => {
        const page = await jobs.listArtifacts(request(token), options).response;
        return { items: page.artifacts, next: page.nextPageToken };
      });
      job.artifacts = joinArtifacts(parts);
    }
  }
  job.omitted = [];
  return job;
}

export function liveSource(baseUrl: string): Source {
  const transport = new GrpcWebFetchTransport({ baseUrl, format: "binary" });
  const access = new AccessClient(transport);
  const agents = new AgentsClient(transport);
  const jobs = new JobsClient(transport);
  const results = new ResultsClient(transport);

  return {
    kind: "live",
    whoAmI: (signal) => called(signal, (options) => access.whoAmI({}, options).response),
    listJobs: (request, signal) => called(signal, (options) => jobs.list(ListJobsRequest.create(request), options).response),
    job: (id, signal) => called(signal, async (options) => complete(jobs, await jobs.get({ id }, options).response, options)),
    watch(id, observer, signal) {
      const open = (afterRevision: bigint, abort: AbortSignal) => jobs.watch({ id, afterRevision }, { ...credentials(), abort }).responses;
      const told = {
        ...observer,
        connected() {
          connected();
          observer.connected();
        },
        lost(problem: Problem, retryAt: number) {
          if (problem.kind !== "busy") disconnected(problem, retryAt);
          observer.lost(problem, retryAt);
        },
        failed(problem: Problem) {
          note(problem);
          observer.failed(problem);
        },
      };
      void follow(open, told, signal);
    },
    agents: (signal) =>
      called(signal, (options) =>
        allPages(async (pageToken) => {
          const page = await agents.listAgents({ pageSize: 1000, pageToken }, options).response;
          return { items: page.agents, next: page.nextPageToken };
        }),
      ),
    async *logs(request, signal) {
      try {
        for await (const part of jobs.logs(LogsRequest.create(request), { ...credentials(), abort: signal }).responses) {
          connected();
          yield part;
        }
      } catch (error) {
        const problem = problemOf(error);
        if (!signal.aborted) note(problem);
        throw problem;
      }
    },
    steps: (query, signal) =>
      called(signal, (options) =>
        allPages(async (pageToken) => {
          const page = await results.getSteps(GetStepsRequest.create({ ...query, pageToken }), options).response;
          return { items: page.phases, next: page.nextPageToken };
        }),
      ),
    completions: (request, signal) => called(signal, (options) => results.listCompletions(ListCompletionsRequest.create(request), options).response),
    hasTokens: () => true,
    completion: (request, signal) => called(signal, (options) => results.getCompletion(GetCompletionRequest.create(request), options).response),
    distributions: (request, signal) => called(signal, (options) => results.getDistributions(GetDistributionsRequest.create(request), options).response),
    timeline: (jobId, signal) =>
      called(signal, async (options) => {
        const pages = await allPages(async (pageToken) => {
          const page = await results.getTimeline({ jobId, pageToken }, options).response;
          return { items: [page], next: page.nextPageToken };
        });
        return { ...pages[0]!, spans: pages.flatMap((page) => page.spans) };
      }),
  };
}
