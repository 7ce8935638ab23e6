// Small parts shared by all pages.
import type { ComponentChildren } from "preact";
import type { JobState } from "../../gen/foil/v1/jobs.js";
import { useNow } from "../app/clock.js";
import { stateName } from "../model/job.js";
import { age, dateTime, DATED } from "../model/format.js";
import type { Problem } from "../source/problem.js";

export function StateBadge({ state }: { state: JobState }) {
  const name = stateName(state);
  return <span class={`badge state-${name}`}>{name}</span>;
}

export function Progress({ fraction, label, active = false }: { fraction: number; label: string; active?: boolean }) {
  const percent = Math.round(fraction * 1000) / 10;
  return (
    <div class={active ? "progress active" : "progress"} role="progressbar" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={percent}>
      <div class="progress-bar" style={{ width: `${percent}%` }} />
    </div>
  );
}

export function Loading({ what }: { what: string }) {
  return (
    <p class="state-note" role="status">
      <span class="spinner" aria-hidden="true" /> Loading {what} …
    </p>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="state-note">{children}</p>;
}

const ADVICE: Partial<Record<Problem["kind"], string>> = {
  forbidden: "Your role does not allow this. Sign in with another token, or ask an operator.",
  unsupported: "",
  unavailable: "It is tried again by itself.",
  busy: "It is tried again by itself.",
  standby: "It is tried again by itself.",
};

export function Failed({ problem, again }: { problem: Problem; again?: (() => void) | undefined }) {
  const advice = ADVICE[problem.kind];
  return (
    <div class="note problem" role="alert">
      <p dir="auto">{problem.message}</p>
      {advice && <p class="muted">{advice}</p>}
      {again && !problem.passes && problem.kind !== "unsupported" && problem.kind !== "forbidden" && (
        <button type="button" onClick={again}>
          Try again
        </button>
      )}
    </div>
  );
}

/** A time as an age, with the date in the title. */
export function Ago({ at }: { at: number | undefined }) {
  const now = useNow(5000);
  if (at === undefined) return <>–</>;
  return (
    <time dateTime={new Date(at).toISOString()} title={dateTime(at)}>
      {now - at > DATED * 1000 ? dateTime(at).slice(0, 10) : `${age((now - at) / 1000)} ago`}
    </time>
  );
}

export function Section({ title, children, aside }: { title: string; children: ComponentChildren; aside?: ComponentChildren }) {
  return (
    <section class="section">
      <div class="section-head">
        <h2>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  );
}

export function Field({ name, children, title }: { name: string; children: ComponentChildren; title?: string | undefined }) {
  return (
    <div class="field" title={title}>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** A hash, shortened to its first characters. The title has the whole hash, and a click copies it. */
export function Hash({ value }: { value: string }) {
  if (value === "") return <span class="muted">–</span>;
  return (
    <button type="button" class="hash" title={`${value} (click to copy)`} onClick={() => void navigator.clipboard?.writeText(value)}>
      {value.slice(0, 12)}
    </button>
  );
}
