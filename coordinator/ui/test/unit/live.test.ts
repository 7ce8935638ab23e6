import assert from "node:assert/strict";
import { test } from "node:test";
import { RpcError } from "@protobuf-ts/runtime-rpc";
import { Job, JobEvent, JobState } from "../../gen/foil/v1/jobs.js";
import { TimelineAttempt, TimelineSpan } from "../../gen/foil/v1/results.js";
import { ErrorInfo, RetryInfo, Status } from "../../gen/google/rpc/error_details.js";
import { parse } from "../../src/app/router.js";
import { cleanToken } from "../../src/app/session.js";
import { eta } from "../../src/model/eta.js";
import { fold, type JobView } from "../../src/model/feed.js";
import { jobFraction, phaseParts } from "../../src/model/job.js";
import { lanesOf, spanOf, spansOf, ticks } from "../../src/model/spans.js";
import { allPages, joinArtifacts } from "../../src/source/parts.js";
import { backoff } from "../../src/source/pause.js";
import { originOf, Problem, problemOf } from "../../src/source/problem.js";
import { follow } from "../../src/source/watch.js";
import { planOf } from "../stub/made.js";

function event(revision: number, body: JobEvent["event"], seconds = revision): JobEvent {
  return { revision: BigInt(revision), at: { seconds: BigInt(seconds), nanos: 0 }, event: body };
}

const job = (state: JobState, part: Partial<Job> = {}): JobEvent["event"] => ({ oneofKind: "job", job: { ...Job.create({ id: "j", state }), ...part } });
const started = (phase: string, attempt = 1): JobEvent["event"] => ({ oneofKind: "phaseStarted", phaseStarted: { phase, attempt } });
const committed = (phase: string, seconds = 5): JobEvent["event"] => ({ oneofKind: "phaseCommitted", phaseCommitted: { phase, seconds, metrics: [] } });
const progress = (phase: string, done: number): JobEvent["event"] => ({ oneofKind: "phaseProgress", phaseProgress: { phase, done: BigInt(done), total: 10n, unit: "steps", step: [] } });

test("a broken stream continues after the last revision, until the job's end", async () => {
  const asked: bigint[] = [];
  const told: string[] = [];
  const streams: (JobEvent | Error)[][] = [
    [event(1, job(JobState.RUNNING)), event(4, started("r00.sft")), new RpcError("gone", "UNAVAILABLE", { a: "b" })],
    [new RpcError("not yet", "UNAVAILABLE", { a: "b" })],
    // A stream may end without the job's last event.
    [event(4, job(JobState.RUNNING))],
    [event(6, job(JobState.SUCCEEDED)), event(7, started("never"))],
  ];
  async function* open(after: bigint) {
    asked.push(after);
    for (const one of streams.shift()!) {
      if (one instanceof Error) throw one;
      yield one;
    }
  }
  const observer = {
    event: (one: JobEvent) => told.push(one.event.oneofKind ?? "?"),
    connected: () => {},
    lost: (problem: Problem) => told.push(`lost: ${problem.message}`),
    failed: (problem: Problem) => told.push(`failed: ${problem.message}`),
  };
  const waits: number[] = [];
  await follow(open, observer, new AbortController().signal, async (ms) => void waits.push(ms));
  assert.deepEqual(asked, [0n, 4n, 4n, 4n]);
  assert.deepEqual(told, ["job", "phaseStarted", "lost: gone", "lost: not yet", "job", "lost: The stream of events ended early.", "job"]);
  assert.ok(waits[1]! > waits[0]! && waits[2]! < waits[1]!, `pauses grow, and begin again after an event: ${waits}`);
});

test("a stream that is refused is not opened again", async () => {
  let opened = 0;
  async function* open(): AsyncIterable<JobEvent> {
    opened += 1;
    throw new RpcError("no", "NOT_FOUND", { a: "b" });
  }
  const failed: string[] = [];
  await follow(open, { event() {}, connected() {}, lost() {}, failed: (problem) => failed.push(problem.kind) }, new AbortController().signal);
  assert.deepEqual([opened, failed], [1, ["not_found"]]);
});

test("pauses grow to a bound", () => {
  assert.deepEqual([backoff(0, 0), backoff(1, 0), backoff(50, 0)], [500, 1000, 15_000]);
  assert.ok(backoff(50, 0.999) < 18_750.1);
});

test("a status becomes a problem with leader and time to wait", () => {
  const details = Status.toBinary({
    details: [
      { typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: ErrorInfo.toBinary({ reason: "NOT_LEADER", domain: "foil", metadata: { leader: "https://user@c1.example:7070/path?q" } }) },
      { typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: RetryInfo.toBinary({ retryDelay: { seconds: 2n, nanos: 500_000_000 } }) },
    ],
  });
  const standby = problemOf(new RpcError("a%20standby", "UNAVAILABLE", { "grpc-status-details-bin": Buffer.from(details).toString("base64") }));
  assert.deepEqual([standby.kind, standby.message, standby.leader, standby.retryAfter, standby.passes], ["standby", "a standby", "https://c1.example:7070", 2500, true]);
  assert.equal(problemOf(new RpcError("x", "UNAVAILABLE", { "grpc-status-details-bin": "%%%" })).kind, "unavailable");
  assert.deepEqual([originOf("javascript:alert(1)"), originOf("//c1"), originOf("http://c1:7070")], [undefined, undefined, "http://c1:7070"]);
  const kinds = ["UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "WHATEVER"].map((code) => problemOf(new RpcError("m", code, { a: "b" })).kind);
  assert.deepEqual(kinds, ["unauthenticated", "forbidden", "busy", "unsupported", "other"]);
  assert.equal(problemOf(new RpcError("Failed to fetch", "INTERNAL")).kind, "unavailable");
});

test("pages are read to the last, and one that names itself is an error", async () => {
  assert.deepEqual(await allPages(async (token) => ({ items: [token], next: token === "" ? "a" : token === "a" ? "b" : "" })), ["", "a", "b"]);
  await assert.rejects(allPages(async () => ({ items: [], next: "x" })));
  const part = (name: string, key: string) => ({ name, kind: "", jobId: "", phase: "", round: 0, attempt: 0, objects: [{ key, size: 1n, blake3: "", path: "" }] });
  const joined = joinArtifacts([part("a", "1"), part("a", "2"), part("b", "3")]);
  assert.deepEqual(joined.map((one) => one.objects.map((object) => object.key)), [["1", "2"], ["3"]]);
});

function folded(events: [JobEvent, number][]): JobView {
  return events.reduce<JobView | undefined>((view, [one, now]) => fold(view, one, now), undefined)!;
}

test("events make up the view of a job", () => {
  const plan = { phases: planOf(1), datasets: [] };
  const view = folded([
    [event(1, job(JobState.RUNNING, { plan, phasesTotal: 11 }), 0), 0],
    [event(2, started("r00.sft"), 10), 10_000],
    [event(2, progress("r00.sft", 5), 20), 20_000],
    [event(3, committed("r00.sft", 20), 30), 30_000],
    [event(3, committed("r00.sft", 20), 30), 30_000],
    [event(4, started("r00.policy.evaluate", 2), 31), 31_000],
  ]);
  assert.deepEqual([view.job.phase, view.job.phasesDone, view.job.attempt], ["r00.policy.evaluate", 1, 2]);
  assert.deepEqual(view.done, [{ phase: "r00.sft", seconds: 20 }]);
  assert.deepEqual(view.entries.map((entry) => entry.kind), ["started", "committed", "started"]);
  assert.ok(Math.abs(jobFraction(view.job) - 1 / 11) < 1e-9);
  const omitted = fold({ ...view, job: { ...view.job, rounds: [{ round: 1, reward: [], policy: [] }] } }, event(9, job(JobState.RUNNING, { omitted: ["rounds"] })), 0)!;
  assert.equal(omitted.job.rounds.length, 1);
});

test("a job's end is told once a round has shown how long its phases take", () => {
  const phases = planOf(2);
  const done = phases.slice(0, 11).map((phase) => ({ phase: phase.id, seconds: 10 }));
  const running = (phasesDone: number, done: number) =>
    ({ ...Job.create({ state: JobState.RUNNING, phase: phases[phasesDone]!.id, phasesDone, plan: { phases, datasets: [] } }), progress: { phase: phases[phasesDone]!.id, done: BigInt(done), total: 10n, unit: "steps", step: [] } }) as Job;
  assert.deepEqual(eta(running(11, 5), done, { phase: phases[11]!.id, seconds: 10, from: 0 }), { phase: 10, job: 10 + 8 * 10 });
  assert.deepEqual(eta(running(11, 0), done, undefined), { job: 90 });
  assert.deepEqual(eta(running(3, 5), done.slice(0, 3), { phase: phases[3]!.id, seconds: 10, from: 0.25 }), { phase: 20 });
  assert.deepEqual(eta({ ...running(11, 5), state: JobState.FAILED }, done, undefined), {});
});

test("the timeline has a span for each try, and the reason that broke one off", () => {
  const entry = (at: number, kind: "started" | "committed", phase: string, attempt = 1) => ({ at, kind, text: "", phase, attempt });
  const spans = spansOf([entry(0, "started", "r01.policy.train"), entry(50, "started", "r01.policy.train", 2), entry(90, "committed", "r01.policy.train")], undefined);
  assert.deepEqual(spans.map(({ from, to, outcome }) => [from, to, outcome]), [[0, 50, "broken"], [50, 90, "committed"]]);
  const attempts = [TimelineAttempt.create({ attempt: 1, endClass: "crash", endMessage: "rank 0 exited" })];
  const span = (outcome: number) => spanOf(TimelineSpan.create({ phase: "r01.policy.train", attempt: 1, startedAt: { seconds: 1n, nanos: 0 }, outcome }), attempts);
  assert.deepEqual([span(3).failureClass, span(3).failure, span(2).failure], ["crash", "rank 0 exited", ""]);
  const lanes = lanesOf(spans, 100);
  assert.deepEqual([lanes.from, lanes.to, lanes.lanes.map((lane) => lane.name), lanes.attempts], [0, 90, ["policy train"], [{ attempt: 2, at: 50 }]]);
  const found = ticks(0, 600_000, 6);
  assert.ok(found.length <= 7 && found.every((one, i) => i === 0 || one.at - found[i - 1]!.at === one.step * 1000));
});

test("addresses name pages, and broken ones are no error", () => {
  assert.deepEqual(parse("/", ""), { page: "jobs" });
  assert.deepEqual(parse("/jobs/01j%2Fx", "samples"), { page: "job", id: "01j/x", tab: "samples" });
  assert.equal(parse("/jobs/%E0%A4%A", "").page, "unknown");
  assert.equal(parse("/nope", "").page, "unknown");
  assert.deepEqual(phaseParts("r02.policy.ref_log_probs"), { round: 2, work: "policy ref log probs" });
  assert.deepEqual(phaseParts("odd"), { round: undefined, work: "odd" });
});

test("a token is one line of visible characters", () => {
  assert.equal(cleanToken("  Bearer abc.def \n"), "abc.def");
  assert.deepEqual([cleanToken("a b"), cleanToken(""), cleanToken("é"), cleanToken("a\r\nx: y")], [undefined, undefined, undefined, undefined]);
});
