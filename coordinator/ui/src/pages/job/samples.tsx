// Completions of prompts, with several rounds side by side.
import { useEffect, useState } from "preact/hooks";
import { CompletionSet, CompletionSort, Selection, type ListCompletionsResponse, type ModelVersion } from "../../../gen/foil/v1/results.js";
import { useSource } from "../../app/context.js";
import { useAnswer } from "../../app/poll.js";
import { NONE } from "../../model/format.js";
import { Pager, usePages } from "../../ui/pager.jsx";
import { roundName } from "../../ui/rounds.jsx";
import { Table } from "../../ui/table.jsx";
import { Empty, Failed, Hash, Loading } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";
import { SampleRow } from "./sample.jsx";

const PAGE_SIZE = 20;
const MAX_ROUNDS = 8;
const TEXT_BYTES = 4096;

const SETS = [
  { set: CompletionSet.EVALUATION, name: "Evaluation", note: "One completion of each round's policy for the evaluation prompts." },
  { set: CompletionSet.TRAINING, name: "Training", note: "What each round's policy was trained on, written by the policy of the round before." },
  { set: CompletionSet.GOLDEN, name: "Golden", note: "Golden answers, and the samples that each round's reward model was compared on." },
];

const SORTS: [CompletionSort, string][] = [
  [CompletionSort.PROMPT, "order of the data set"],
  [CompletionSort.REWARD, "reward"],
  [CompletionSort.GOLD, "gold"],
  [CompletionSort.KL, "KL"],
  [CompletionSort.LENGTH, "length"],
  [CompletionSort.DISAGREEMENT, "disagreement of rounds"],
];

const SELECTIONS: [Selection, string][] = [
  [Selection.UNSPECIFIED, "all"],
  [Selection.CHOSEN, "chosen"],
  [Selection.REJECTED, "rejected"],
  [Selection.USED, "used"],
  [Selection.UNUSED, "unused"],
];

interface Query {
  set: CompletionSet;
  rounds: number[];
  sort: CompletionSort;
  descending: boolean;
  sortRound: number | undefined;
  contains: string;
  finished: boolean | undefined;
  selection: Selection;
  ranges: Ranges;
}

type RangeName = "Reward" | "Gold" | "Tokens";
type Ranges = { [name in `${"min" | "max"}${RangeName}`]?: number };

const RANGES: [RangeName, string][] = [
  ["Reward", "reward"],
  ["Gold", "gold"],
  ["Tokens", "tokens"],
];

const FIRST: Query = {
  set: CompletionSet.EVALUATION,
  rounds: [],
  sort: CompletionSort.PROMPT,
  descending: false,
  sortRound: undefined,
  contains: "",
  finished: undefined,
  selection: Selection.UNSPECIFIED,
  ranges: {},
};

function isFiltered({ contains, finished, selection, ranges }: Query): boolean {
  return contains !== "" || finished !== undefined || selection !== Selection.UNSPECIFIED || Object.keys(ranges).length > 0;
}

export function SamplesTab({ job, version }: TabProps) {
  const source = useSource();
  const [query, setQuery] = useState(FIRST);
  const key = JSON.stringify(query);
  const pages = usePages(key);
  const answer = useAnswer(
    (signal) => {
      const { set, rounds, sort, descending, sortRound, contains, finished, selection, ranges } = query;
      return source.completions(
        {
          jobId: job.id,
          set,
          rounds,
          sort,
          descending,
          ...(sortRound === undefined ? {} : { sortRound }),
          filter: { contains, selection, ...ranges, ...(finished === undefined ? {} : { finished }) },
          textBytes: TEXT_BYTES,
          pageSize: PAGE_SIZE,
          offset: BigInt(pages.token || 0),
        },
        signal,
      );
    },
    // Later pages do not change while they are read. On the first one, a new round changes the list of rounds.
    [job.id, key, pages.token, pages.index === 0 ? version : 0],
  );
  // Changes may arrive late, from a timer, and must not revert later choices.
  const change = (part: Partial<Query>) => setQuery((before) => ({ ...before, ...part }));
  const page = answer.value;
  const from = Number(pages.token || 0);
  const pager = ({ rows, total }: ListCompletionsResponse) => {
    // A page may have fewer rows than requested.
    const next = from + rows.length;
    return <Pager pages={pages} nextToken={BigInt(next) < total ? String(next) : ""} shown={rows.length} from={from} total={total} what="prompts" busy={answer.loading} byRow />;
  };
  return (
    <>
      <SampleTools query={query} change={change} page={page} best={job.bestRound} />
      <p class="sub">{SETS.find((one) => one.set === query.set)?.note}</p>
      {answer.problem && <Failed problem={answer.problem} again={answer.again} />}
      {!page && answer.loading && !answer.problem && <Loading what="samples" />}
      {page && page.rows.length === 0 && !answer.loading && (
        <Empty>{isFiltered(query) ? "No sample matches these filters." : "There are no samples of this set yet."}</Empty>
      )}
      {page && page.rows.length > 0 && (
        <>
          {pager(page)}
          <div class={answer.loading ? "samples busy" : "samples"} aria-busy={answer.loading}>
            {page.rows.map((row) => (
              <SampleRow key={`${query.set}-${row.promptId}`} jobId={job.id} set={query.set} row={row} rounds={page.rounds} best={job.bestRound} />
            ))}
          </div>
          {pager(page)}
          <Provenance page={page} />
        </>
      )}
    </>
  );
}

function SampleTools({ query, change, page, best }: { query: Query; change: (part: Partial<Query>) => void; page: ListCompletionsResponse | undefined; best: number }) {
  const [text, setText] = useState(query.contains);
  useEffect(() => {
    const timer = setTimeout(() => text !== query.contains && change({ contains: text }), 400);
    return () => clearTimeout(timer);
  }, [text]);
  const byValue = query.sort !== CompletionSort.PROMPT && query.sort !== CompletionSort.DISAGREEMENT;
  const shown = page?.rounds.map((one) => one.round) ?? [];
  return (
    <div class="toolbar" role="search" aria-label="Samples">
      <div class="segments" role="group" aria-label="Set">
        {SETS.map(({ set, name }) => (
          <button type="button" key={set} aria-pressed={set === query.set} onClick={() => change({ set, rounds: [], sortRound: undefined, selection: Selection.UNSPECIFIED, ranges: {} })}>
            {name}
          </button>
        ))}
      </div>
      <RoundsChoice available={page?.availableRounds ?? []} shown={shown} best={best} onChange={(rounds) => change({ rounds, sortRound: undefined })} />
      <label>
        Sort{" "}
        <select value={String(query.sort)} onChange={(event) => change({ sort: Number(event.currentTarget.value), descending: Number(event.currentTarget.value) > CompletionSort.PROMPT })}>
          {SORTS.map(([sort, name]) => (
            <option key={sort} value={String(sort)}>
              {name}
            </option>
          ))}
        </select>
      </label>
      {byValue && shown.length > 1 && (
        <label>
          of{" "}
          <select value={String(query.sortRound ?? shown[shown.length - 1])} onChange={(event) => change({ sortRound: Number(event.currentTarget.value) })}>
            {shown.map((round) => (
              <option key={round} value={String(round)}>
                {roundName(round)}
              </option>
            ))}
          </select>
        </label>
      )}
      <button type="button" aria-pressed={query.descending} onClick={() => change({ descending: !query.descending })} title="Direction of the order">
        {query.descending ? "↓ descending" : "↑ ascending"}
      </button>
      <label>
        End{" "}
        <select value={query.finished === undefined ? "" : String(query.finished)} onChange={(event) => change({ finished: event.currentTarget.value === "" ? undefined : event.currentTarget.value === "true" })}>
          <option value="">any</option>
          <option value="true">finished</option>
          <option value="false">truncated</option>
        </select>
      </label>
      {query.set === CompletionSet.TRAINING && (
        <label>
          Selection{" "}
          <select value={String(query.selection)} onChange={(event) => change({ selection: Number(event.currentTarget.value) })}>
            {SELECTIONS.map(([selection, name]) => (
              <option key={selection} value={String(selection)}>
                {name}
              </option>
            ))}
          </select>
        </label>
      )}
      <RangeChoice ranges={query.ranges} onChange={(ranges) => change({ ranges })} />
      <label class="grow">
        <span class="visually-hidden">Text in prompt or completion</span>
        <input type="search" placeholder="text in prompt or completion" maxLength={100} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      </label>
    </div>
  );
}

function RangeChoice({ ranges, onChange }: { ranges: Ranges; onChange: (ranges: Ranges) => void }) {
  const count = Object.keys(ranges).length;
  const input = (end: "min" | "max", name: RangeName) => {
    const key = `${end}${name}` as const;
    return (
      <input
        type="number"
        step={name === "Tokens" ? 1 : "any"}
        min={name === "Tokens" ? 0 : undefined}
        aria-label={`${name}, ${end === "min" ? "at least" : "at most"}`}
        value={ranges[key] ?? ""}
        onChange={(event) => {
          const { [key]: _, ...rest } = ranges;
          const value = event.currentTarget.valueAsNumber;
          onChange(Number.isFinite(value) ? { ...rest, [key]: value } : rest);
        }}
      />
    );
  };
  return (
    <details class="dropdown">
      <summary>Ranges{count > 0 ? ` (${count})` : ""}</summary>
      <div class="dropdown-body card ranges">
        {RANGES.map(([name, label]) => (
          <div class="range" key={name}>
            <span>{label}</span> {input("min", name)} to {input("max", name)}
          </div>
        ))}
      </div>
    </details>
  );
}

/** Rounds as a short list: `start, 1–3, 60`. */
function roundList(rounds: number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < rounds.length; ) {
    const from = rounds[i]!;
    let to = from;
    while (from > 0 && rounds[i + 1] === to + 1) to = rounds[(i += 1)]!;
    i += 1;
    parts.push(from === 0 ? "start" : from === to ? String(from) : `${from}–${to}`);
  }
  return parts.join(", ");
}

function RoundsChoice({ available, shown, best, onChange }: { available: number[]; shown: number[]; best: number; onChange: (rounds: number[]) => void }) {
  if (available.length < 2) return null;
  const toggle = (round: number) => {
    const next = shown.includes(round) ? shown.filter((other) => other !== round) : [...shown, round];
    if (next.length > 0) onChange(next.sort((a, b) => a - b).slice(-MAX_ROUNDS));
  };
  return (
    <details class="dropdown">
      <summary>Rounds: {roundList(shown) || "…"}</summary>
      <div class="dropdown-body card">
        <p class="sub">At most {MAX_ROUNDS} side by side.</p>
        <div class="chips">
          {available.map((round) => (
            <button type="button" key={round} class="chip" aria-pressed={shown.includes(round)} disabled={!shown.includes(round) && shown.length >= MAX_ROUNDS} onClick={() => toggle(round)}>
              {round === 0 ? "start" : round}
              {round === best && round > 0 ? " ★" : ""}
            </button>
          ))}
        </div>
      </div>
    </details>
  );
}

function Provenance({ page }: { page: ListCompletionsResponse }) {
  return (
    <details class="card provenance">
      <summary>Where these samples come from</summary>
      <p class="sub">
        Seed {page.seed}. A completion's random numbers derive from the seed, the round, the purpose, the prompt's number and the completion's index.
      </p>
      <Table
        label="Provenance of each round"
        plain
        rows={page.rounds}
        rowKey={(round) => round.round}
        columns={[
          { head: "Round", cell: (round) => roundName(round.round) },
          { head: "Phase", class: "mono", cell: (round) => round.phase },
          { head: "Attempt", class: "number", cell: (round) => round.attempt },
          { head: "Purpose", class: "mono", cell: (round) => round.purpose },
          { head: "Policy", cell: (round) => <Model model={round.policy} /> },
          { head: "Reward model", cell: (round) => <Model model={round.reward} /> },
        ]}
      />
    </details>
  );
}

function Model({ model }: { model: ModelVersion | undefined }) {
  if (!model) return <>{NONE}</>;
  return (
    <>
      <span class="mono">{model.artifact}</span> <Hash value={model.blake3} />
    </>
  );
}
