// A report in the format of `foil report`: dist with the data of synthetic jobs embedded.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CompletionSet, GetCompletionRequest, GetDistributionsRequest, GetStepsRequest, ListCompletionsRequest, Report } from "../../gen/foil/v1/results.js";
import { at } from "./made.js";
import { distributions, getCompletion, listCompletions } from "./samples.js";
import { stepsOf, type MadeJob } from "./world.js";

export interface ReportRun {
  made: MadeJob;
  arm: string;
}

export function reportOf(runs: ReportRun[], title = "APO against its controls"): Report {
  return Report.create({
    version: "0.1.0",
    generatedAt: at(Date.UTC(2026, 2, 1, 12)),
    title,
    runs: runs.map(({ made, arm }) => {
      const { job, samples } = made;
      const page = (set: CompletionSet) => ({ set, page: listCompletions(samples, ListCompletionsRequest.create({ jobId: job.id, set, pageSize: 60 })) });
      const first = GetCompletionRequest.create({ jobId: job.id, set: CompletionSet.EVALUATION, round: 1 });
      return {
        arm,
        job: { ...job, artifacts: job.artifacts.map((artifact) => ({ ...artifact, objects: [] })) },
        directory: "",
        steps: { phases: stepsOf(made, GetStepsRequest.create({ jobId: job.id, maxPoints: 200 })), nextPageToken: "" },
        distributions: distributions(samples, GetDistributionsRequest.create({ jobId: job.id })),
        timeline: { spans: made.spans, attempts: [], nextPageToken: "", alarms: made.alarms },
        completions: [page(CompletionSet.EVALUATION), page(CompletionSet.TRAINING)],
        details: [{ set: CompletionSet.EVALUATION, promptId: 0n, detail: getCompletion(samples, first) }],
      };
    }),
  });
}

/** One self-contained file. */
export function reportPage(report: Report, dist: string): string {
  const read = (name: string) => readFileSync(join(dist, name), "utf8");
  // Times in the program's format, with an offset instead of Z.
  const text = Report.toJsonString(report, { useProtoFieldName: true }).replace(/"(\d{4}-\d\d-\d\dT[\d:.]+)Z"/g, '"$1+00:00"');
  const json = text.replaceAll("<", "\\u003c");
  const hash = (name: string) => `'sha256-${createHash("sha256").update(read(name)).digest("base64")}'`;
  const policy = `default-src 'none'; script-src ${hash("app.js")}; style-src ${hash("app.css")}; img-src data:; base-uri 'none'; form-action 'none'`;
  const parts: [string, string][] = [
    ["<head>", `<head>\n<meta http-equiv="content-security-policy" content="${policy}">`],
    ['<link rel="stylesheet" href="/app.css">', `<style>${read("app.css")}</style>`],
    ["<!--foil-report-->", `<script type="application/json" id="foil-report">${json}</script>`],
    ['<script src="/app.js" defer></script>', `<script>${read("app.js")}</script>`],
  ];
  return parts.reduce((html, [from, to]) => html.replace(from, () => to), read("index.html"));
}
