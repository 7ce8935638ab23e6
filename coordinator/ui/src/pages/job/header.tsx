// The identity of a job, its progress, and why it waits or failed.
import { JobState, type Job, type JobFailure } from "../../../gen/foil/v1/jobs.js";
import { useNow } from "../../app/clock.js";
import { eta } from "../../model/eta.js";
import type { JobView } from "../../model/feed.js";
import { bytes, counted, dateTime, duration, timeLeft } from "../../model/format.js";
import { isEnded, jobFraction, outline, phaseParts, phasesTotal, progressText, runSeconds } from "../../model/job.js";
import { millis } from "../../model/time.js";
import type { Problem } from "../../source/problem.js";
import { LongText } from "../../ui/text.jsx";
import { Ago, Failed, Field, Hash, Progress, StateBadge } from "../../ui/widgets.jsx";

export function JobHeader({ view, problem }: { view: JobView; problem: Problem | undefined }) {
  const { job } = view;
  return (
    <header class="job-head">
      <div class="job-title">
        <h1>
          <bdi>{job.name || job.id}</bdi>
        </h1>
        <StateBadge state={job.state} />
        {job.bestRound > 0 && <span class="tag">best round {job.bestRound}</span>}
      </div>
      <p class="sub">
        <span class="mono">{job.id}</span>
        {outline(job) !== "" && <> · {outline(job)}</>}
      </p>
      <JobProgress view={view} />
      {job.waiting && !isEnded(job) && (
        <p class="note warning">
          <strong>Waiting{job.waiting.position > 0 ? `, #${job.waiting.position} in the queue` : ""}:</strong> <bdi>{job.waiting.reason}</bdi>
        </p>
      )}
      {problem && <Failed problem={problem} />}
      {job.failure && <Failure failure={job.failure} />}
      <Facts job={job} />
    </header>
  );
}

function JobProgress({ view }: { view: JobView }) {
  const now = useNow();
  const { job, running, runningSince } = view;
  const ended = isEnded(job);
  const total = phasesTotal(job);
  const live = running && runningSince !== undefined ? { ...running, seconds: (now - runningSince) / 1000 } : undefined;
  const left = eta(job, view.done, live);
  const ran = runSeconds(job, now);
  const { round, work } = phaseParts(job.phase);
  return (
    <div class="job-progress">
      <Progress fraction={jobFraction(job)} label="Progress of the job" active={job.state === JobState.RUNNING && !job.waiting} />
      <div class="job-progress-line">
        {ended ? (
          <span>
            {job.phasesDone} of {counted(total, "phase")} done{ran === undefined ? "" : ` in ${duration(ran)}`}
          </span>
        ) : (
          <span aria-live="polite">
            {job.phase !== "" && (
              <>
                <strong>
                  {round ? `Round ${round}, ` : ""}
                  {work}
                </strong>
                {job.progress && job.progress.phase === job.phase ? `: ${progressText(job.progress)}` : ""}
                {" · "}
              </>
            )}
            phase {Math.min(total, job.phasesDone + 1)} of {total}
          </span>
        )}
        <span class="muted">
          {!ended && left.phase !== undefined && `phase ends in ${timeLeft(left.phase)} · `}
          {!ended && left.job !== undefined && `job ends in ${timeLeft(left.job)} · `}
          {!ended && ran !== undefined && `running for ${duration(Math.floor(ran))}`}
          {ended && job.endedAt && (
            <>
              ended <Ago at={millis(job.endedAt)} />
            </>
          )}
        </span>
      </div>
    </div>
  );
}

function facts(failure: JobFailure): string {
  const found = [
    failure.lastClass === "" ? failure.class : `${failure.class}, last ${failure.lastClass}`,
    failure.phase,
    failure.rank === undefined ? "" : `rank ${failure.rank}`,
    failure.attempt > 0 ? `attempt ${failure.attempt}` : "",
    failure.step === undefined ? "" : `step ${failure.step}`,
    failure.chunk === undefined ? "" : `chunk ${failure.chunk}`,
    failure.signal,
  ];
  return found.filter((fact) => fact !== "").join(" · ");
}

const ROWS_SHOWN = 64;

function Failure({ failure }: { failure: JobFailure }) {
  const memory = failure.memory;
  const sizes: [string, bigint | undefined][] = memory
    ? [
        ["asked for", memory.requestedBytes],
        ["peak", memory.peakBytes],
        ["limit", memory.limitBytes],
        ["free", memory.freeBytes],
      ]
    : [];
  return (
    <section class="note problem failure" aria-label="Failure">
      <h2>
        <LongText text={failure.message} />
      </h2>
      {failure.advice !== "" && (
        <p>
          <LongText text={failure.advice} />
        </p>
      )}
      <p class="sub mono">{facts(failure)}</p>
      {memory && (
        <p class="sub">
          Memory of the {memory.place || "host"}: {sizes.flatMap(([name, size]) => (size === undefined ? [] : [`${name} ${bytes(size)}`])).join(", ")}
        </p>
      )}
      {failure.rows.length > 0 && (
        <p class="sub">
          Rows: <bdi>{failure.rows.slice(0, ROWS_SHOWN).join(", ")}</bdi>
          {failure.rows.length > ROWS_SHOWN && ` and ${failure.rows.length - ROWS_SHOWN} more`}
        </p>
      )}
      {failure.logTail.length > 0 && (
        <details>
          <summary>Last {counted(failure.logTail.length, "log line")} of the rank</summary>
          <pre class="log" tabIndex={0}>
            {failure.logTail.map((line, i) => (
              <div key={i}>
                <LongText text={line} />
              </div>
            ))}
          </pre>
        </details>
      )}
    </section>
  );
}

function Facts({ job }: { job: Job }) {
  const labels = Object.entries(job.labels);
  const at = (time: number | undefined) => (time === undefined ? undefined : dateTime(time));
  return (
    <dl class="facts">
      <Field name="Owner">
        <bdi>{job.owner || "–"}</bdi>
        {job.tenant && <span class="muted"> / {job.tenant}</span>}
      </Field>
      <Field name="Submitted" title={at(millis(job.submittedAt))}>
        <Ago at={millis(job.submittedAt)} />
      </Field>
      {job.startedAt && (
        <Field name="Started" title={at(millis(job.startedAt))}>
          <Ago at={millis(job.startedAt)} />
        </Field>
      )}
      <Field name="Attempt">
        {job.attempt || "–"}
        {job.preemptions > 0 && <span class="muted"> ({counted(job.preemptions, "preemption")})</span>}
      </Field>
      {job.priority !== 0 && <Field name="Priority">{job.priority}</Field>}
      <Field name="Seed">{job.spec?.seed ?? 0}</Field>
      <Field name="Specification">
        <Hash value={job.specBlake3} />
      </Field>
      {labels.length > 0 && (
        <Field name="Labels">
          {labels.map(([key, value]) => (
            <span class="label" key={key}>
              <bdi>
                {key}={value}
              </bdi>
            </span>
          ))}
        </Field>
      )}
      {job.expiresAt && <Field name="Deleted">{dateTime(millis(job.expiresAt))}</Field>}
      {job.pins.length > 0 && <Field name="Pinned">{job.pins.map((pin) => pin.artifact || "the job").join(", ")}</Field>}
    </dl>
  );
}
