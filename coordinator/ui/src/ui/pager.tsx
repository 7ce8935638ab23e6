// Paging with opaque tokens: forward with the token of the answer, back with the tokens used before.
import { useState } from "preact/hooks";
import { count } from "../model/format.js";

export interface Pages {
  /** Number of the page, from 0. */
  index: number;
  token: string;
  next: (token: string) => void;
  previous: () => void;
  /** Goes to a page given only its token. */
  jump: (token: string) => void;
}

/** Returns to the first page when `key` changes. */
export function usePages(key: string): Pages {
  const [state, setState] = useState({ key, tokens: [""] });
  const tokens = state.key === key ? state.tokens : [""];
  const set = (tokens: string[]) => setState({ key, tokens });
  return {
    index: tokens.length - 1,
    token: tokens[tokens.length - 1]!,
    next: (token) => set([...tokens, token]),
    previous: () => set(tokens.length > 1 ? tokens.slice(0, -1) : tokens),
    jump: (token) => set(token === "" ? [""] : ["", token]),
  };
}

interface PagerProps {
  pages: Pages;
  nextToken: string;
  /** Number of rows on the page, before it, and on all pages if that is known. */
  shown: number;
  from: number;
  total?: bigint | undefined;
  what: string;
  busy?: boolean;
  /** Whether tokens are row numbers, so that any row can be reached. */
  byRow?: boolean;
}

export function Pager({ pages, nextToken, shown, from, total, what, busy = false, byRow = false }: PagerProps) {
  const range = shown === 0 ? `no ${what}` : `${count(from + 1)}–${count(from + shown)}${total === undefined ? "" : ` of ${count(total)}`} ${what}`;
  if (from === 0 && nextToken === "") return <p class="pager muted">{range}</p>;
  return (
    <nav class="pager" aria-label={`Pages of ${what}`}>
      <button type="button" disabled={pages.index === 0 || busy} onClick={() => pages.jump("")}>
        First
      </button>
      <button type="button" disabled={pages.index === 0 || busy} onClick={pages.previous}>
        Previous
      </button>
      <span aria-live="polite">{range}</span>
      <button type="button" disabled={nextToken === "" || busy} onClick={() => pages.next(nextToken)}>
        Next
      </button>
      {byRow && total !== undefined && (
        <label class="go-to">
          Go to{" "}
          <input
            type="number"
            min={1}
            max={Number(total)}
            aria-label={`Number of the first of the ${what} to show`}
            onChange={(event) => {
              const row = Math.round(event.currentTarget.valueAsNumber);
              if (row >= 1 && BigInt(row) <= total) pages.jump(row === 1 ? "" : String(row - 1));
            }}
          />
        </label>
      )}
    </nav>
  );
}
