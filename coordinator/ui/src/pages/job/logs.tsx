// The end of the ranks' logs, which is followed while the job runs.
import { useEffect, useRef, useState } from "preact/hooks";
import { LogsState, type LogsEnd } from "../../../gen/foil/v1/jobs.js";
import { option } from "../../app/connection.js";
import { useSource } from "../../app/context.js";
import { bytes, clockTime, count, dateTime } from "../../model/format.js";
import { isEnded } from "../../model/job.js";
import { joined, logLine, type LogLine } from "../../model/logs.js";
import { backoff, pause } from "../../source/pause.js";
import { problemOf, type Problem } from "../../source/problem.js";
import { LongText } from "../../ui/text.jsx";
import { Empty, Failed, Loading } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

/** Number of lines requested first, and number of lines kept. */
const TAIL = 300;
const KEPT = 1000;

interface LogState {
  lines: LogLine[];
  end: LogsEnd | undefined;
  problem: Problem | undefined;
  loaded: boolean;
}

const NOTHING: LogState = { lines: [], end: undefined, problem: undefined, loaded: false };

export function LogsTab({ job }: TabProps) {
  const source = useSource();
  const [rank, setRank] = useState<number>();
  const [level, setLevel] = useState("");
  const [state, setState] = useState(NOTHING);
  const [follow, setFollow] = useState(true);
  const box = useRef<HTMLDivElement>(null);
  const ended = isEnded(job);

  useEffect(() => {
    const stop = new AbortController();
    let [cursor, number, tries] = ["", 0, 0];
    setState(NOTHING);
    const read = async () => {
      while (!stop.signal.aborted) {
        try {
          const request = { jobId: job.id, follow: !ended, cursor, ...(rank === undefined ? {} : { rank }), ...(cursor === "" ? { tail: TAIL } : {}) };
          for await (const part of source.logs(request, stop.signal)) {
            tries = 0;
            if (part.cursor !== "") cursor = part.cursor;
            const more = part.lines.map((line) => logLine(line, (number += 1)));
            setState((before) => ({ lines: joined(before.lines, more, KEPT), end: part.end ?? before.end, problem: undefined, loaded: true }));
            if (part.end) return;
          }
          if (ended) return setState((before) => ({ ...before, loaded: true }));
        } catch (error) {
          if (stop.signal.aborted) return;
          const problem = problemOf(error);
          setState((before) => ({ ...before, problem, loaded: true }));
          if (!problem.passes) return;
        }
        await pause(backoff(tries++), stop.signal);
      }
    };
    void read();
    return () => stop.abort();
  }, [source, job.id, rank, ended]);

  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [state.lines, follow]);

  const ranks = job.spec?.resources?.ranks ?? 1;
  const lines = level === "" ? state.lines : state.lines.filter((line) => (level === "error" ? line.level === "error" : ["warn", "warning", "error"].includes(line.level)));
  return (
    <>
      <div class="toolbar">
        <label>
          Rank{" "}
          <select value={rank === undefined ? "" : String(rank)} onChange={(event) => setRank(event.currentTarget.value === "" ? undefined : Number(event.currentTarget.value))}>
            <option value="">all</option>
            {Array.from({ length: Math.min(ranks, 256) }, (_, i) => (
              <option key={i} value={String(i)}>
                {i}
              </option>
            ))}
          </select>
        </label>
        <label>
          Level{" "}
          <select value={level} onChange={(event) => setLevel(event.currentTarget.value)}>
            <option value="">all</option>
            <option value="warn">warnings and errors</option>
            <option value="error">errors</option>
          </select>
        </label>
        <label class="check">
          <input type="checkbox" checked={follow} onChange={(event) => setFollow(event.currentTarget.checked)} /> keep at the end
        </label>
        <span class="muted">
          The last {count(state.lines.length)} lines. <code>foil logs {(job.name || job.id) + option(source)}</code> has all.
        </span>
      </div>
      {state.problem && <Failed problem={state.problem} />}
      {!state.loaded && <Loading what="the logs" />}
      {state.loaded && lines.length === 0 && !state.problem && <Empty>{state.end?.state === LogsState.NOT_STARTED ? "The job has not started." : "There are no lines."}</Empty>}
      {lines.length > 0 && (
        <div class="card log-box" ref={box} tabIndex={0} role="log" aria-label="Logs of ranks">
          {lines.map((line) => (
            <Line key={line.number} line={line} ranks={ranks} />
          ))}
        </div>
      )}
      {state.end && state.end.unfinished.length > 0 && (
        <p class="note warning">The last lines of these rank processes never came: {state.end.unfinished.join(", ")}</p>
      )}
    </>
  );
}

function Line({ line, ranks }: { line: LogLine; ranks: number }) {
  if (line.dropped > 0n) {
    return (
      <div class="log-line muted">
        {bytes(line.dropped)} of the log of rank {line.rank} were dropped here
      </div>
    );
  }
  return (
    <div class={`log-line level-${line.level || "none"}`}>
      <time title={line.at === undefined ? "" : dateTime(line.at)}>{line.at === undefined ? "" : clockTime(line.at)}</time>
      {ranks > 1 && <span class="rank">{line.rank}</span>}
      {["error", "warn", "warning"].includes(line.level) && <span class="level">{line.level}</span>}
      <span>
        <LongText text={line.message} shown={1000} />
        {line.fields.map(([name, value]) => (
          <span class="log-field" key={name}>
            {" "}
            <bdi>{name}</bdi>=<LongText text={value} shown={200} />
          </span>
        ))}
      </span>
    </div>
  );
}
