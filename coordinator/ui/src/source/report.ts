// The data embedded in the page by `foil report`.
import type { JsonValue, PartialMessage } from "@protobuf-ts/runtime";
import { WhoAmIResponse } from "../../gen/foil/v1/access.js";
import { JobEvent, ListJobsResponse } from "../../gen/foil/v1/jobs.js";
import {
  CompletionSet,
  CompletionSort,
  type GetCompletionRequest,
  GetDistributionsResponse,
  GetTimelineResponse,
  ListCompletionsResponse,
  Report,
  type RunReport,
} from "../../gen/foil/v1/results.js";
import { queryRows } from "../model/completions.js";
import { Problem } from "./problem.js";
import type { Source } from "./source.js";

const ELEMENT = "foil-report";

const TIME_FIELD = /^(at|since)$|_at$/;
const OFFSET = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?)\+00:00$/;

/** Replaces an offset of 0 in times by Z: protobuf-ts does not parse the offset together with a fraction of a second. */
export function withZ(field: string, value: unknown): unknown {
  return TIME_FIELD.test(field) && typeof value === "string" ? value.replace(OFFSET, "$1Z") : value;
}

/** The page's report. Undefined on the pages of a coordinator. */
export function readReport(): Report | undefined {
  const text = document.getElementById(ELEMENT)?.textContent?.trim();
  if (!text) return undefined;
  const report = Report.fromJson(JSON.parse(text, withZ) as JsonValue, { ignoreUnknownFields: true });
  const seen = new Set<string>();
  for (const run of report.runs) {
    if (!run.job) continue;
    // The same job may be included twice, and pages identify jobs by id.
    while (seen.has(run.job.id)) run.job.id += "+";
    seen.add(run.job.id);
  }
  return report;
}

function missing(what: string): Promise<never> {
  return Promise.reject(new Problem("unsupported", `This report does not hold ${what}.`));
}

export interface ReportSource extends Source {
  readonly kind: "report";
  readonly report: Report;
}

export function reportSource(report: Report): ReportSource {
  const runs = new Map<string, RunReport>(report.runs.flatMap((run) => (run.job ? [[run.job.id, run]] : [])));
  const run = (id: string): RunReport => {
    const found = runs.get(id);
    if (!found) throw new Problem("not_found", `This report has no job ${id}.`);
    return found;
  };
  const detail = (request: PartialMessage<GetCompletionRequest>) => {
    const { round = 0, index = 0, promptId = 0n } = request;
    const set = request.set || CompletionSet.EVALUATION;
    const found = run(request.jobId ?? "").details.find(
      (one) => one.set === set && one.promptId === promptId && one.detail?.completion?.round === round && one.detail.completion.index === index,
    );
    return found?.detail;
  };
  return {
    kind: "report",
    report,
    whoAmI: async () => WhoAmIResponse.create({}),
    listJobs: async () => ListJobsResponse.create({ jobs: [...runs.values()].map((one) => one.job!) }),
    job: async (id) => run(id).job!,
    watch(id, observer) {
      try {
        const job = run(id).job!;
        observer.connected();
        observer.event(JobEvent.create({ revision: job.revision, event: { oneofKind: "job", job } }));
      } catch (error) {
        observer.failed(error as Problem);
      }
    },
    agents: () => missing("the workers"),
    async *logs() {
      await missing("the logs of ranks: `foil logs JOB` shows them while the job is in the store");
    },
    steps: async ({ jobId, phases = [] }) => {
      const all = run(jobId).steps?.phases ?? [];
      return phases.length === 0 ? all : all.filter((one) => phases.includes(one.phase));
    },
    completions: async (request) => {
      const set = request.set || CompletionSet.EVALUATION;
      const page = run(request.jobId ?? "").completions.find((one) => one.set === set)?.page;
      if (!page) return ListCompletionsResponse.create({});
      const rounds = request.rounds && request.rounds.length > 0 ? page.rounds.filter((one) => request.rounds!.includes(one.round)) : page.rounds;
      const numbers = new Set(rounds.map((one) => one.round));
      const filter = request.filter;
      const rows = queryRows(
        page.rows.map((row) => ({ ...row, completions: row.completions.filter((one) => numbers.has(one.round)) })),
        {
          sort: request.sort ?? CompletionSort.PROMPT,
          descending: request.descending ?? false,
          sortRound: request.sortRound ?? rounds[rounds.length - 1]?.round ?? 0,
          filter: filter && {
            ...filter,
            contains: filter.contains ?? "",
            selection: filter.selection ?? 0,
          },
        },
      );
      const from = Number(request.pageToken || request.offset || 0);
      const to = from + (request.pageSize || 20);
      return {
        ...page,
        rows: rows.slice(from, to),
        rounds,
        total: BigInt(rows.length),
        nextPageToken: to < rows.length ? String(to) : "",
      };
    },
    hasTokens: (request) => detail(request) !== undefined,
    completion: (request) => {
      const found = detail(request);
      return found ? Promise.resolve(found) : missing("this completion in full: the pages of the coordinator show it");
    },
    distributions: async ({ jobId, rounds }) => {
      const found = run(jobId ?? "").distributions ?? GetDistributionsResponse.create({});
      if (!rounds || rounds.length === 0) return found;
      return { ...found, rounds: found.rounds.filter((one) => rounds.includes(one.round)) };
    },
    timeline: async (jobId) => run(jobId).timeline ?? GetTimelineResponse.create({}),
  };
}
