// The table of jobs.
import { useEffect, useState } from "preact/hooks";
import { JobState, type Job } from "../../gen/foil/v1/jobs.js";
import { useSource } from "../app/context.js";
import { useAnswer } from "../app/poll.js";
import { jobHref } from "../app/router.js";
import { ALL_STATES, isEnded, jobFraction, phaseParts, phasesTotal, stateName, stateNamed } from "../model/job.js";
import { labelFilter } from "../model/labels.js";
import { millis } from "../model/time.js";
import { Pager, usePages } from "../ui/pager.jsx";
import { Ago, Empty, Failed, Loading, Progress, StateBadge } from "../ui/widgets.jsx";

const PAGE_SIZE = 25;
const POLL_MS = 3000;

interface Filters {
  states: JobState[];
  labels: string;
  mine: boolean;
}

/** Filters are part of the address, so that links preserve them. */
function readFilters(): Filters {
  const query = new URLSearchParams(location.search);
  const states = (query.get("state") ?? "").split(",").map(stateNamed);
  return { states: states.filter((state) => state !== undefined), labels: query.get("label") ?? "", mine: query.get("mine") === "true" };
}

function writeFilters({ states, labels, mine }: Filters) {
  const query = new URLSearchParams();
  if (states.length > 0) query.set("state", states.map(stateName).join(","));
  if (labels !== "") query.set("label", labels);
  if (mine) query.set("mine", "true");
  const text = query.toString();
  history.replaceState(null, "", `${location.pathname}${text === "" ? "" : `?${text}`}${location.hash}`);
}

export function JobsPage() {
  const source = useSource();
  const [filters, setFilters] = useState(readFilters);
  const change = (part: Partial<Filters>) => setFilters((before) => ({ ...before, ...part }));
  useEffect(() => {
    if (source.kind === "live") writeFilters(filters);
  }, [filters]);
  useEffect(() => {
    document.title = "Jobs · Foil";
  }, []);

  const labels = labelFilter(filters.labels);
  const key = JSON.stringify([filters.states, "labels" in labels ? labels.labels : {}, filters.mine]);
  const pages = usePages(key);
  const answer = useAnswer(
    (signal) =>
      source.listJobs(
        { pageSize: PAGE_SIZE, pageToken: pages.token, states: filters.states, labels: "labels" in labels ? labels.labels : {}, mine: filters.mine },
        signal,
      ),
    [key, pages.token],
    { every: source.kind === "live" ? POLL_MS : undefined },
  );
  const jobs = answer.value?.jobs ?? [];
  return (
    <main id="main">
      <h1>Jobs</h1>
      {source.kind === "live" && <FilterBar filters={filters} change={change} problem={"problem" in labels ? labels.problem : undefined} />}
      {answer.problem && <Failed problem={answer.problem} again={answer.again} />}
      {!answer.value && answer.loading && !answer.problem && <Loading what="jobs" />}
      {answer.value && jobs.length === 0 && (
        <Empty>
          {filters.states.length > 0 || filters.labels !== "" || filters.mine ? (
            "No job matches these filters."
          ) : (
            <>
              There are no jobs yet. Submit one with <code>foil submit JOB.yaml</code>.
            </>
          )}
        </Empty>
      )}
      {jobs.length > 0 && <JobTable jobs={jobs} />}
      {answer.value && <Pager pages={pages} nextToken={answer.value.nextPageToken} shown={jobs.length} from={pages.index * PAGE_SIZE} what="jobs" />}
    </main>
  );
}

function FilterBar({ filters, change, problem }: { filters: Filters; change: (part: Partial<Filters>) => void; problem: string | undefined }) {
  const [labels, setLabels] = useState(filters.labels);
  const toggle = (state: JobState) => {
    const states = filters.states.includes(state) ? filters.states.filter((other) => other !== state) : [...filters.states, state];
    change({ states });
  };
  return (
    <form class="filters" role="search" aria-label="Filter jobs" onSubmit={(event) => (event.preventDefault(), change({ labels: labels.trim() }))}>
      <div class="chips" role="group" aria-label="States">
        {ALL_STATES.map((state) => (
          <button type="button" key={state} class="chip" aria-pressed={filters.states.includes(state)} onClick={() => toggle(state)}>
            {stateName(state)}
          </button>
        ))}
      </div>
      <label class="check">
        <input type="checkbox" checked={filters.mine} onChange={(event) => change({ mine: event.currentTarget.checked })} /> mine only
      </label>
      <label class="grow">
        <span class="visually-hidden">Labels</span>
        <input
          type="search"
          placeholder="label: team=speech, env=prod"
          value={labels}
          aria-invalid={problem !== undefined}
          onInput={(event) => setLabels(event.currentTarget.value)}
          onBlur={() => change({ labels: labels.trim() })}
        />
      </label>
      {problem && (
        <p class="error-text" role="alert">
          {problem}
        </p>
      )}
    </form>
  );
}

function JobTable({ jobs }: { jobs: Job[] }) {
  return (
    <div class="card flush">
      <table class="data rows">
        <caption class="visually-hidden">Jobs, newest first</caption>
        <thead>
          <tr>
            <th scope="col">Job</th>
            <th scope="col">State</th>
            <th scope="col">Progress</th>
            <th scope="col">Now</th>
            <th scope="col">Owner</th>
            <th scope="col">Submitted</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <JobRow key={job.id} job={job} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function JobRow({ job }: { job: Job }) {
  const total = phasesTotal(job);
  const labels = Object.entries(job.labels);
  return (
    <tr>
      <th scope="row">
        <a class="job-name" href={jobHref(job.id)} data-route="1">
          <bdi>{job.name || job.id}</bdi>
        </a>
        <div class="sub mono">{job.id}</div>
        {labels.length > 0 && (
          <div class="labels">
            {labels.slice(0, 4).map(([key, value]) => (
              <span class="label" key={key}>
                <bdi>
                  {key}={value}
                </bdi>
              </span>
            ))}
            {labels.length > 4 && <span class="muted">+{labels.length - 4}</span>}
          </div>
        )}
      </th>
      <td data-name="State">
        <StateBadge state={job.state} />
        {job.priority !== 0 && <div class="sub">priority {job.priority}</div>}
      </td>
      <td data-name="Progress" class="progress-cell">
        <Progress fraction={jobFraction(job)} label={`Progress of ${job.name}`} active={job.state === JobState.RUNNING} />
        <div class="sub">
          {job.phasesDone} of {total} phases
        </div>
      </td>
      <td data-name="Now">
        <Now job={job} />
      </td>
      <td data-name="Owner">
        <bdi>{job.owner || "–"}</bdi>
        {job.tenant !== "" && job.tenant !== "default" && <div class="sub">{job.tenant}</div>}
      </td>
      <td data-name="Submitted" class="nowrap">
        <Ago at={millis(job.submittedAt)} />
      </td>
    </tr>
  );
}

/** What a job is doing or waiting for, or how it ended. */
function Now({ job }: { job: Job }) {
  if (job.failure) {
    return (
      <span class="clamp" title={job.failure.message}>
        <span class="failure-class">{job.failure.class}</span> <bdi>{job.failure.message}</bdi>
      </span>
    );
  }
  const phase = job.phase === "" || isEnded(job) ? undefined : phaseParts(job.phase);
  return (
    <>
      {phase && !job.waiting && (
        <span title={job.phase}>
          {phase.round !== undefined && phase.round > 0 ? `round ${phase.round}, ` : ""}
          {phase.work}
        </span>
      )}
      {job.waiting && (
        <span class="clamp" title={job.waiting.reason}>
          {job.waiting.position > 0 && <span class="tag">#{job.waiting.position} in queue</span>} <bdi>{job.waiting.reason}</bdi>
        </span>
      )}
      {isEnded(job) && <span class="muted">{job.bestRound > 0 ? `best round ${job.bestRound}` : "–"}</span>}
    </>
  );
}
