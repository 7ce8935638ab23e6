// A data table in its card, which scrolls separately, names its columns, and shows long lists in parts.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { count } from "../model/format.js";

export interface Column<Row> {
  head: ComponentChildren;
  cell: (row: Row) => ComponentChildren;
  title?: string | undefined;
  /** number, nowrap, mono or wrap. */
  class?: string;
}

interface Props<Row> {
  label: string;
  /** The columns. The first one names the row. */
  columns: Column<Row>[];
  rows: Row[];
  rowKey: (row: Row) => string | number;
  rowClass?: (row: Row) => string;
  /** Number of rows shown initially. */
  shown?: number;
  /** Whether to bound the height and keep the head visible. */
  tall?: boolean;
  /** Whether to omit the card. */
  plain?: boolean;
  children?: ComponentChildren;
}

export function Table<Row>({ label, columns, rows, rowKey, rowClass, shown = 100, tall = false, plain = false, children }: Props<Row>) {
  const [more, setMore] = useState(shown);
  return (
    <div class={plain ? "" : "card flush"}>
      <div class={tall ? "scroll tall" : "scroll"} tabIndex={0} role="region" aria-label={label}>
        <table class={tall ? "data sticky" : "data"}>
          <caption class="visually-hidden">{label}</caption>
          <thead>
            <tr>
              {columns.map((column, i) => (
                <th key={i} scope="col" class={column.class} title={column.title}>
                  {column.head}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.slice(0, more).map((row) => (
              <tr key={rowKey(row)} class={rowClass?.(row)}>
                {columns.map((column, i) =>
                  i === 0 ? (
                    <th key={i} scope="row" class={column.class}>
                      {column.cell(row)}
                    </th>
                  ) : (
                    <td key={i} class={column.class}>
                      {column.cell(row)}
                    </td>
                  ),
                )}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > more && (
        <button type="button" class="table-more" onClick={() => setMore(more + 5 * shown)}>
          Show more of {count(rows.length)} rows
        </button>
      )}
      {children}
    </div>
  );
}
