// A coordinator of synthetic jobs, with state, events and results in memory.
import { Role, Credential, WhoAmIRequest, WhoAmIResponse } from "../../gen/foil/v1/access.js";
import { Agent, AgentState, ListAgentsRequest, ListAgentsResponse } from "../../gen/foil/v1/agents.js";
import {
  GetJobRequest,
  Job,
  JobEvent,
  JobState,
  ListJobsRequest,
  ListJobsResponse,
  LogsRequest,
  LogsResponse,
  LogsState,
  PhasePlan,
  WatchJobRequest,
} from "../../gen/foil/v1/jobs.js";
import {
  GetCompletionRequest,
  GetCompletionResponse,
  GetDistributionsRequest,
  GetDistributionsResponse,
  GetStepsRequest,
  GetStepsResponse,
  GetTimelineRequest,
  GetTimelineResponse,
  ListCompletionsRequest,
  ListCompletionsResponse,
  PhaseSteps,
  SpanOutcome,
  TimelineSpan,
} from "../../gen/foil/v1/results.js";
import { CODES, method, Refusal, type Call, type Methods } from "./grpcWeb.js";
import { at, artifactOf, chance, normal, planOf, policyMetrics, roundOf } from "./made.js";
import { distributions, getCompletion, listCompletions, type SampleSet } from "./samples.js";

type Body = JobEvent["event"];

/** A job: its state, its events so far, and its watchers. */
export class MadeJob {
  readonly history: JobEvent[] = [];
  readonly spans: TimelineSpan[] = [];
  private wake: (() => void)[] = [];
  private transient: JobEvent[] = [];
  private cut = 0;
  samples: SampleSet;
  logs: string[] = [];
  alarms: string[] = [];

  constructor(
    public job: Job,
    readonly rounds: number,
  ) {
    this.samples = { prompts: 500, rounds: [0, ...job.rounds.map((round) => round.round)] };
    if (job.phasesDone > 0) this.past(Number(job.startedAt!.seconds) * 1000);
  }

  /** Events and spans of the completed phases. */
  private past(start: number) {
    const phases = this.job.plan!.phases.slice(0, this.job.phasesDone);
    const secondsOf = (phase: PhasePlan) => 6 + 40 * chance(phase.round, phase.id.length);
    const spent = phases.reduce((sum, phase) => sum + secondsOf(phase) * 1000 + 300, 0);
    // The last phase of a running job has just been committed.
    let now = isEnded(this.job) ? start : Date.now() - spent - 9000;
    this.job.startedAt = at(now);
    for (const phase of phases) {
      const seconds = secondsOf(phase);
      this.push({ oneofKind: "phaseStarted", phaseStarted: { phase: phase.id, attempt: 1 } }, now);
      if (phase.steps > 0) this.push({ oneofKind: "checkpointCommitted", checkpointCommitted: { phase: phase.id, step: 30n, attempt: 1, bytes: 182_448_084n } }, now + seconds * 500);
      this.push({ oneofKind: "phaseCommitted", phaseCommitted: { phase: phase.id, metrics: [], seconds } }, now + seconds * 1000);
      this.spans.push(
        TimelineSpan.create({ phase: phase.id, round: phase.round, kind: phase.kind, attempt: 1, startedAt: at(now), endedAt: at(now + seconds * 1000), outcome: SpanOutcome.COMMITTED }),
      );
      now += seconds * 1000 + 300;
    }
    if (this.job.endedAt) this.job.endedAt = at(now);
  }

  private push(event: Body, ms = Date.now()) {
    this.job = { ...this.job, revision: BigInt(this.history.length + 1) };
    this.history.push({ revision: this.job.revision, at: at(ms), event });
  }

  private notify() {
    for (const wake of this.wake.splice(0)) wake();
  }

  private emit(event: Body) {
    this.push(event);
    this.transient.push(this.history[this.history.length - 1]!);
    this.notify();
  }

  private change(part: Partial<Job>) {
    this.job = { ...this.job, ...part };
  }

  state(state: JobState, part: Partial<Job> = {}) {
    this.change({ ...part, state });
    this.emit({ oneofKind: "job", job: this.job });
  }

  /** Starts the next phase of the plan in the running attempt. */
  start(resumedAfterStep = 0n) {
    const phase = this.job.plan!.phases[this.job.phasesDone]!;
    this.change({ phase: phase.id });
    delete this.job.progress;
    this.emit({ oneofKind: "phaseStarted", phaseStarted: { phase: phase.id, attempt: this.job.attempt } });
    this.spans.push(
      TimelineSpan.create({ phase: phase.id, round: phase.round, kind: phase.kind, attempt: this.job.attempt, startedAt: at(Date.now()), outcome: SpanOutcome.RUNNING, resumedAfterStep }),
    );
  }

  progress(done: number, total: number, unit: string) {
    const progress = { phase: this.job.phase, done: BigInt(done), total: BigInt(total), unit, step: [] };
    this.change({ progress });
    this.transient.push({ revision: this.job.revision, at: at(Date.now()), event: { oneofKind: "phaseProgress", phaseProgress: progress } });
    this.notify();
  }

  commit(seconds: number) {
    const phase = this.job.plan!.phases[this.job.phasesDone]!;
    const rounds = [...this.job.rounds];
    if (phase.kind === "evaluate_policy" && phase.round > 0) rounds.push(roundOf(phase.round, this.rounds));
    const span = this.spans[this.spans.length - 1];
    if (span) Object.assign(span, { endedAt: at(Date.now()), outcome: SpanOutcome.COMMITTED });
    this.change({
      phasesDone: this.job.phasesDone + 1,
      rounds,
      start: phase.id === "r00.policy.evaluate" ? policyMetrics(0, this.rounds) : this.job.start,
      artifacts: [...this.job.artifacts, artifactOf(this.job.id, phase)],
      bestRound: rounds.length > 0 ? rounds.reduce((best, one) => (value(one) > value(best) ? one : best)).round : 0,
    });
    this.samples.rounds = [0, ...rounds.map((round) => round.round)];
    this.emit({ oneofKind: "phaseCommitted", phaseCommitted: { phase: phase.id, metrics: [], seconds } });
  }

  notice(level: string, text: string) {
    this.emit({ oneofKind: "notice", notice: { level, text } });
  }

  checkpoint(step: number) {
    this.emit({ oneofKind: "checkpointCommitted", checkpointCommitted: { phase: this.job.phase, step: BigInt(step), attempt: this.job.attempt, bytes: 182_448_084n } });
  }

  /** Ends the running span like a failed attempt. */
  breakOff() {
    const span = this.spans[this.spans.length - 1];
    if (span) Object.assign(span, { endedAt: at(Date.now()), outcome: SpanOutcome.INTERRUPTED });
  }

  /** Breaks all open streams. */
  disconnect() {
    this.cut += 1;
    this.notify();
  }

  async *watch(after: bigint, signal: AbortSignal): AsyncIterable<JobEvent> {
    const cut = this.cut;
    let seen = this.transient.length;
    yield { revision: this.job.revision, at: at(Date.now()), event: { oneofKind: "job", job: this.job } };
    for (const event of this.history.slice(Number(after))) yield event;
    while (!signal.aborted) {
      while (seen < this.transient.length) yield this.transient[seen++]!;
      if (isEnded(this.job)) return;
      await new Promise<void>((resolve) => {
        this.wake.push(resolve);
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
      if (this.cut !== cut) throw new Refusal(CODES.UNAVAILABLE, "the coordinator is shutting down; try again");
    }
  }
}

function value(round: Job["rounds"][number]): number {
  return round.policy.find((one) => one.name === "selection_gold_mean")!.value;
}

function isEnded(job: Job): boolean {
  return [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED].includes(job.state);
}

export function stepsOf(made: MadeJob, request: GetStepsRequest): PhaseSteps[] {
  const points = request.maxPoints || 500;
  const { job } = made;
  const phases = job.plan!.phases.filter((phase, i) => phase.steps > 0 && (i < job.phasesDone || phase.id === job.phase));
  return phases
    .filter((phase) => request.phases.length === 0 || request.phases.includes(phase.id))
    .map((phase) => {
      const running = phase.id === job.phase;
      const done = running ? Math.min(phase.steps, Number(job.progress?.done ?? 0n)) : phase.steps;
      const per = Math.max(1, Math.ceil(done / points));
      const step = Array.from({ length: Math.ceil(done / per) }, (_, i) => Math.min(done, (i + 1) * per));
      const curve = (metric: string, mean: (t: number, i: number) => number, spread: number) => {
        const values = step.map((one, i) => mean(one / phase.steps, i));
        return { metric, mean: values, min: values.map((one, i) => one - spread * Math.abs(normal(i, 1, phase.round))), max: values.map((one, i) => one + spread * Math.abs(normal(i, 2, phase.round))), missing: [] };
      };
      const base = phase.kind === "train_reward" ? 0.7 : phase.kind === "sft" ? 3.2 : 1.7;
      return PhaseSteps.create({
        phase: phase.id,
        round: phase.round,
        kind: phase.kind,
        steps: phase.steps,
        stepsDone: done,
        running,
        stepsPerPoint: per,
        step,
        curves: [
          curve("loss", (t, i) => base * (0.55 + 0.45 * Math.exp(-3 * t)) + 0.03 * normal(i, phase.round, 3), 0.05),
          curve("grad_norm", (t, i) => 1.2 + 2 * Math.exp(-4 * t) + 0.2 * Math.abs(normal(i, phase.round, 4)), 0.3),
          curve("learning_rate", (t) => 5e-6 * (1 - 0.9 * t), 0),
          curve("rows", () => 64, 0),
          curve("tokens", (_, i) => 15_000 + 900 * normal(i, phase.round, 5), 0),
          curve("seconds", (_, i) => 0.42 + 0.02 * Math.abs(normal(i, phase.round, 6)), 0.02),
          curve("skipped", () => 0, 0),
          ...(phase.kind === "train_policy" ? [curve("rewards/accuracies", (t) => 0.5 + 0.3 * t, 0.06), curve("rewards/margins", (t) => 0.9 * t, 0.1)] : []),
          ...(phase.kind === "train_reward" ? [curve("train_accuracy", (t) => 0.55 + 0.3 * t, 0.06)] : []),
        ],
      });
    });
}

export class World {
  readonly jobs = new Map<string, MadeJob>();
  agents: Agent[] = [];
  /** The accepted token. Without one there is no authentication. */
  token: string | undefined;
  role = Role.OPERATOR;
  /** The answer to every call during an outage. */
  outage: Refusal | undefined;
  ready = { ok: true, text: "ready: leading" };
  readonly calls: string[] = [];

  add(job: Job, rounds: number): MadeJob {
    const made = new MadeJob(job, rounds);
    this.jobs.set(job.id, made);
    return made;
  }

  private check(name: string, call: Call, role = Role.VIEWER) {
    this.calls.push(name);
    if (this.outage) throw this.outage;
    if (this.token !== undefined && call.authorization !== `Bearer ${this.token}`) {
      throw new Refusal(CODES.UNAUTHENTICATED, call.authorization ? "the token is unknown or was revoked" : "a bearer token is needed");
    }
    if (this.role < role) throw new Refusal(CODES.PERMISSION_DENIED, `the call needs the role ${Role[role].toLowerCase()}`);
  }

  private find(id: string): MadeJob {
    const found = this.jobs.get(id);
    if (!found) throw new Refusal(CODES.NOT_FOUND, `there is no job ${id}`);
    return found;
  }

  methods(): Methods {
    const methods: Methods = new Map();
    method(methods, "/foil.v1.Access/WhoAmI", WhoAmIRequest, WhoAmIResponse, (_, call) => {
      this.check("WhoAmI", call);
      return WhoAmIResponse.create(
        this.token === undefined ? { name: "local", role: Role.ADMIN, credential: Credential.NONE } : { name: "ada", tenant: "speech", role: this.role, credential: Credential.TOKEN },
      );
    });
    method(methods, "/foil.v1.Agents/ListAgents", ListAgentsRequest, ListAgentsResponse, (_, call) => {
      this.check("ListAgents", call, Role.OPERATOR);
      return { agents: this.agents, nextPageToken: "" };
    });
    method(methods, "/foil.v1.Jobs/List", ListJobsRequest, ListJobsResponse, (request, call) => {
      this.check("List", call);
      const all = [...this.jobs.values()].map((made) => made.job).reverse();
      const found = all.filter(
        (job) =>
          (request.states.length === 0 || request.states.includes(job.state)) &&
          Object.entries(request.labels).every(([key, value]) => job.labels[key] === value) &&
          (!request.mine || job.owner === "ada"),
      );
      const from = Number(request.pageToken || 0);
      const size = request.pageSize || 50;
      const page = found.slice(from, from + size).map((job) => ({ ...job, plan: undefined, spec: undefined, rounds: [], start: [], artifacts: [], progress: undefined }) as unknown as Job);
      return { jobs: page, nextPageToken: from + size < found.length ? String(from + size) : "" };
    });
    method(methods, "/foil.v1.Jobs/Get", GetJobRequest, Job, (request, call) => {
      this.check("Get", call);
      return this.find(request.id).job;
    });
    const world = this;
    method(methods, "/foil.v1.Jobs/Watch", WatchJobRequest, JobEvent, (request, call) => {
      async function* events() {
        world.check(`Watch ${request.afterRevision}`, call);
        yield* world.find(request.id).watch(request.afterRevision, call.signal);
      }
      return events();
    });
    method(methods, "/foil.v1.Jobs/Logs", LogsRequest, LogsResponse, (request, call) => {
      async function* lines() {
        world.check("Logs", call);
        const made = world.find(request.jobId);
        const all = made.logs.map((line, i) => ({ attempt: 1, rank: i % 4, line, droppedBytes: 0n }));
        const some = all.filter((line) => request.rank === undefined || line.rank === request.rank);
        yield { lines: request.cursor === "" ? some.slice(-(request.tail || some.length)) : [], cursor: "1" };
        if (request.follow) await new Promise<void>((resolve) => call.signal.addEventListener("abort", () => resolve(), { once: true }));
        else yield { lines: [], cursor: "1", end: { state: LogsState.ENDED, unfinished: [] } };
      }
      return lines();
    });
    method(methods, "/foil.v1.Results/GetSteps", GetStepsRequest, GetStepsResponse, (request, call) => {
      this.check("GetSteps", call);
      return { phases: stepsOf(this.find(request.jobId), request), nextPageToken: "" };
    });
    method(methods, "/foil.v1.Results/ListCompletions", ListCompletionsRequest, ListCompletionsResponse, (request, call) => {
      this.check("ListCompletions", call);
      return listCompletions(this.find(request.jobId).samples, request);
    });
    method(methods, "/foil.v1.Results/GetCompletion", GetCompletionRequest, GetCompletionResponse, (request, call) => {
      this.check("GetCompletion", call);
      return getCompletion(this.find(request.jobId).samples, request);
    });
    method(methods, "/foil.v1.Results/GetDistributions", GetDistributionsRequest, GetDistributionsResponse, (request, call) => {
      this.check("GetDistributions", call);
      return distributions(this.find(request.jobId).samples, request);
    });
    method(methods, "/foil.v1.Results/GetTimeline", GetTimelineRequest, GetTimelineResponse, (request, call) => {
      this.check("GetTimeline", call);
      const made = this.find(request.jobId);
      const numbers = [...new Set(made.spans.map((span) => span.attempt))];
      const attempts = numbers.map((attempt) => {
        const own = made.spans.filter((span) => span.attempt === attempt);
        const last = own[own.length - 1]!;
        const broken = last.outcome === SpanOutcome.INTERRUPTED;
        const running = !broken && !isEnded(made.job);
        return {
          attempt,
          startedAt: own[0]!.startedAt!,
          ...(running ? {} : { endedAt: last.endedAt! }),
          endClass: running ? "" : broken ? "agent_lost" : "completed",
          endMessage: broken ? "agent gpu-2 was not heard for 30 s; its ranks are lost" : "",
          ranks: running ? [0, 1, 2, 3].map((rank) => ({ rank, agent: rank < 2 ? "gpu-1" : "gpu-2", device: `cuda:${rank % 2}` })) : [],
        };
      });
      return { spans: made.spans, attempts, nextPageToken: "", alarms: made.alarms };
    });
    return methods;
  }
}

export function agentsOf(jobId: string, jobName: string, phase: string): Agent[] {
  return [1, 2].map((number) =>
    Agent.create({
      id: `gpu-${number}`,
      hostname: `node-${number}.train.example`,
      version: "0.1.0",
      state: AgentState.CONNECTED,
      since: at(Date.now() - 86_400_000),
      heardAt: at(Date.now() - 2000),
      devices: [0, 1].map((index) => ({
        device: { id: `GPU-${number}f2c${index}`, kind: "cuda", name: "NVIDIA H100 80GB HBM3", memoryBytes: 85_899_345_920n },
        use: { jobId, jobName, attempt: 1, rank: (number - 1) * 2 + index, phase, since: at(Date.now() - 840_000) },
      })),
    }),
  );
}

export const PLAN = planOf;
