// Phases over time: attempts, failures, recoveries and checkpoints, and the ranks and their devices.
import { useMemo, useState } from "preact/hooks";
import { AgentState, type Agent } from "../../../gen/foil/v1/agents.js";
import type { Job } from "../../../gen/foil/v1/jobs.js";
import type { TimelineAttempt } from "../../../gen/foil/v1/results.js";
import { useNow } from "../../app/clock.js";
import { useSource } from "../../app/context.js";
import { useAnswer } from "../../app/poll.js";
import type { JobView } from "../../model/feed.js";
import { clockTime, dateTime, duration, NONE } from "../../model/format.js";
import { isEnded } from "../../model/job.js";
import { spanOf, spansOf, type Span } from "../../model/spans.js";
import { millis } from "../../model/time.js";
import type { Problem } from "../../source/problem.js";
import { Table } from "../../ui/table.jsx";
import { LongText } from "../../ui/text.jsx";
import { Ago, Empty, Failed, Section } from "../../ui/widgets.jsx";
import { Events } from "./events.jsx";
import { Lanes } from "./lanes.jsx";
import type { TabProps } from "./page.jsx";

export interface JobTimeline {
  spans: Span[];
  attempts: TimelineAttempt[];
  /** Warnings from the metrics of rounds. */
  alarms: string[];
  problem: Problem | undefined;
}

/** The coordinator's timeline, or one derived from events. */
export function useTimeline(job: Job, view: JobView, version: number): JobTimeline {
  const source = useSource();
  const answer = useAnswer((signal) => source.timeline(job.id, signal), [job.id, job.phase, job.attempt, job.state, version]);
  const ended = isEnded(job) ? millis(job.endedAt) : undefined;
  const spans = useMemo(() => {
    const told = answer.value?.spans ?? [];
    return told.length > 0 ? told.map((span) => spanOf(span, answer.value!.attempts)) : spansOf(view.entries, ended);
  }, [answer.value, answer.value ? undefined : view.entries, ended]);
  const problem = answer.problem?.kind === "unsupported" ? undefined : answer.problem;
  return { spans, attempts: answer.value?.attempts ?? [], alarms: answer.value?.alarms ?? [], problem };
}

export function TimelineTab({ job, view, version }: TabProps) {
  const { spans, attempts, problem } = useTimeline(job, view, version);
  const source = useSource();
  return (
    <>
      {problem && <Failed problem={problem} />}
      <Lanes spans={spans} entries={view.entries} />
      <Attempts attempts={attempts} />
      {source.kind === "live" && !isEnded(job) && <Ranks job={job} attempts={attempts} />}
      {spans.length > 0 && <Spans spans={spans} />}
      {view.entries.length > 0 && (
        <Section title="Events">
          <Events entries={view.entries} last={500} />
        </Section>
      )}
    </>
  );
}

function Spans({ spans }: { spans: Span[] }) {
  const now = useNow(spans.some((span) => span.outcome === "running") ? 1000 : 60_000);
  const [broken, setBroken] = useState(false);
  const found = broken ? spans.filter((span) => span.outcome === "broken") : spans;
  return (
    <Section
      title="Phases"
      aside={
        <label class="check">
          <input type="checkbox" checked={broken} onChange={(event) => setBroken(event.currentTarget.checked)} /> interrupted only
        </label>
      }
    >
      {found.length === 0 && <Empty>No phase was interrupted.</Empty>}
      {found.length > 0 && (
        <Table
          label="Phases, the last one first"
          tall
          rows={found.toReversed()}
          rowKey={(span) => `${span.phase}-${span.attempt}-${span.from}`}
          columns={[
            { head: "Phase", class: "mono", cell: (span) => span.phase },
            { head: "Attempt", class: "number", cell: (span) => span.attempt },
            { head: "Start", class: "nowrap", cell: (span) => <span title={dateTime(span.from)}>{clockTime(span.from)}</span> },
            { head: "Time", class: "number", cell: (span) => duration(((span.to ?? now) - span.from) / 1000) },
            { head: "End", cell: (span) => <SpanEnd span={span} /> },
          ]}
        />
      )}
    </Section>
  );
}

function SpanEnd({ span }: { span: Span }) {
  return (
    <>
      <span class={`outcome-${span.outcome}`}>{span.outcome === "broken" ? "interrupted" : span.outcome}</span>{" "}
      {span.resumedAfterStep > 0n && <span class="muted">resumed after step {String(span.resumedAfterStep)} </span>}
      {span.failure !== "" && (
        <>
          <span class="failure-class">{words(span.failureClass)}</span> <LongText text={span.failure} shown={400} />
        </>
      )}
    </>
  );
}

function words(name: string): string {
  return name.replaceAll("_", " ");
}

/** Attempts that ended, with the reason. A single attempt that ran to the end of the job is omitted: it repeats the header. */
function Attempts({ attempts }: { attempts: TimelineAttempt[] }) {
  if (attempts.length < 2) return null;
  const seconds = ({ startedAt, endedAt }: TimelineAttempt) => (startedAt && endedAt ? (millis(endedAt) - millis(startedAt)) / 1000 : NaN);
  return (
    <Section title="Attempts">
      <Table
        label="Attempts, the last one first"
        tall
        rows={attempts.toReversed()}
        rowKey={(one) => one.attempt}
        columns={[
          { head: "Attempt", class: "number", cell: (one) => one.attempt },
          { head: "Start", class: "nowrap", cell: (one) => (one.startedAt ? dateTime(millis(one.startedAt)) : NONE) },
          { head: "Time", class: "number", cell: (one) => duration(seconds(one)) },
          { head: "End", cell: (one) => <AttemptEnd attempt={one} /> },
        ]}
      />
    </Section>
  );
}

function AttemptEnd({ attempt: { endedAt, endClass, endMessage } }: { attempt: TimelineAttempt }) {
  if (!endedAt) return <span class="outcome-running">running</span>;
  return (
    <>
      <span class={endClass === "completed" ? "outcome-committed" : "failure-class"}>{words(endClass)}</span>{" "}
      {endMessage !== "" && <LongText text={endMessage} shown={400} />}
    </>
  );
}

interface Place {
  rank: number;
  agent: string;
  device: string;
  since: number | undefined;
  note: string;
}

/** The places of the job's ranks, from the list of workers, in which operators see more details. */
function placesOf(agents: Agent[], jobId: string): Place[] {
  return agents.flatMap((agent) =>
    agent.devices.flatMap(({ device, use }) => {
      if (use?.jobId !== jobId) return [];
      const note = [device?.name ?? "", agent.state === AgentState.CONNECTED ? "" : "worker is not connected"];
      return [{ rank: use.rank, agent: agent.hostname || agent.id, device: device?.id ?? "", since: millis(use.since), note: note.filter((text) => text !== "").join(", ") }];
    }),
  );
}

const RANKS_POLL_MS = 5000;

/** The devices held by the job. */
function Ranks({ job, attempts }: { job: Job; attempts: TimelineAttempt[] }) {
  const source = useSource();
  const answer = useAnswer((signal) => source.agents(signal), [job.id], { every: RANKS_POLL_MS });
  const current = attempts[attempts.length - 1];
  const told = (current?.ranks ?? []).map((one): Place => ({ rank: one.rank, agent: one.agent, device: one.device, since: millis(current!.startedAt), note: "" }));
  const seen = placesOf(answer.value ?? [], job.id);
  const places = (seen.length >= told.length ? seen : told).sort((a, b) => a.rank - b.rank);
  return (
    <Section title="Ranks">
      {answer.problem && answer.problem.kind !== "forbidden" && <Failed problem={answer.problem} />}
      {places.length === 0 && (answer.value || answer.problem) && <Empty>The job holds no device now.</Empty>}
      {places.length > 0 && (
        <Table
          label="Ranks"
          tall
          shown={1000}
          rows={places}
          rowKey={(place) => place.rank}
          columns={[
            { head: "Rank", class: "number", cell: (place) => place.rank },
            { head: "Worker", cell: (place) => <bdi>{place.agent}</bdi> },
            {
              head: "Device",
              cell: (place) => (
                <>
                  <span class="mono">{place.device}</span> <bdi class="muted">{place.note}</bdi>
                </>
              ),
            },
            { head: "Since", class: "nowrap", cell: (place) => <Ago at={place.since} /> },
          ]}
        />
      )}
    </Section>
  );
}
