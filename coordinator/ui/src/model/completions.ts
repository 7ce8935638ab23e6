// Sorts and filters the completions of a report the same way as the coordinator.
import { CompletionSort, Selection, type Completion, type CompletionFilter, type CompletionRow } from "../../gen/foil/v1/results.js";

type Filter = Pick<CompletionFilter, "contains" | "selection"> & Partial<CompletionFilter>;

export interface RowQuery {
  sort: CompletionSort;
  descending: boolean;
  /** The round by whose values rows are sorted. */
  sortRound: number;
  filter: Filter | undefined;
}

function value(completion: Completion, sort: CompletionSort): number | undefined {
  switch (sort) {
    case CompletionSort.REWARD:
      return completion.reward;
    case CompletionSort.GOLD:
      return completion.gold;
    case CompletionSort.KL:
      return completion.kl;
    case CompletionSort.LENGTH:
      return completion.tokens;
    default:
      return undefined;
  }
}

/** The value by which a row is sorted: the mean over the completions of a round. */
export function sortKey(row: CompletionRow, { sort, sortRound }: Pick<RowQuery, "sort" | "sortRound">): number | undefined {
  if (sort === CompletionSort.DISAGREEMENT) return row.disagreement;
  const values = row.completions.filter((one) => one.round === sortRound).map((one) => value(one, sort));
  const known = values.filter((one): one is number => one !== undefined);
  return known.length === 0 ? undefined : known.reduce((sum, one) => sum + one, 0) / known.length;
}

/** Whether a value is within bounds. A missing value is outside all bounds. */
function within(value: number | undefined, min: number | undefined, max: number | undefined): boolean {
  if (min === undefined && max === undefined) return true;
  return value !== undefined && value >= (min ?? -Infinity) && value <= (max ?? Infinity);
}

function allows(filter: Filter, one: Completion): boolean {
  return (
    (filter.finished === undefined || one.finished === filter.finished) &&
    (filter.selection === Selection.UNSPECIFIED || one.selection === filter.selection) &&
    within(one.reward, filter.minReward, filter.maxReward) &&
    within(one.gold, filter.minGold, filter.maxGold) &&
    within(one.tokens, filter.minTokens, filter.maxTokens)
  );
}

function matches(row: CompletionRow, filter: Filter | undefined): boolean {
  if (!filter) return true;
  if (filter.promptId !== undefined && row.promptId !== filter.promptId) return false;
  const wanted = filter.contains.toLowerCase();
  const holds = (text: string | undefined) => text !== undefined && text.toLowerCase().includes(wanted);
  const inPrompt = wanted === "" || row.prompt.some((message) => holds(message.text?.text));
  return row.completions.some((one) => (inPrompt || holds(one.text?.text)) && allows(filter, one));
}

/** The matching rows, sorted. Rows without the value come last, and equal rows keep the order of the data set. */
export function queryRows(rows: CompletionRow[], query: RowQuery): CompletionRow[] {
  const found = rows.filter((row) => matches(row, query.filter));
  const byPrompt = query.sort === CompletionSort.UNSPECIFIED || query.sort === CompletionSort.PROMPT;
  if (byPrompt) return query.descending ? found.toReversed() : found;
  const keyed = found.map((row) => ({ row, key: sortKey(row, query) }));
  const sign = query.descending ? -1 : 1;
  keyed.sort((a, b) => {
    if (a.key === undefined || b.key === undefined) return Number(a.key === undefined) - Number(b.key === undefined);
    return sign * (a.key - b.key);
  });
  return keyed.map(({ row }) => row);
}
