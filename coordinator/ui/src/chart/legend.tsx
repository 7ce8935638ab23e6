// The legend of a chart, with the line and shape of each series. A click hides or shows a series.
import { corners, dashOf, shapeOf } from "./marks.js";
import type { Series } from "./spec.js";

export function Swatch({ series }: { series: Series }) {
  const points = corners(shapeOf(series.slot), 3.6).map(([dx, dy]) => `${11 + dx},${6 + dy}`);
  const dash = series.line === "outline" ? "" : dashOf(series.slot).join(" ");
  return (
    <svg class={`swatch slot-${(series.slot % 8) + 1}`} width="22" height="12" viewBox="0 0 22 12" aria-hidden="true">
      {series.line === "outline" ? (
        <rect x="3" y="1" width="16" height="10" fill="currentColor" fill-opacity="0.2" stroke="currentColor" />
      ) : (
        <>
          <line x1="0" y1="6" x2="22" y2="6" stroke="currentColor" stroke-width="1.6" stroke-dasharray={dash || undefined} />
          {!series.faint && (points.length === 0 ? <circle cx="11" cy="6" r="3.6" fill="currentColor" /> : <polygon points={points.join(" ")} fill="currentColor" />)}
        </>
      )}
    </svg>
  );
}

export function Legend({ series, always, hidden, toggle }: { series: Series[]; always: boolean; hidden: ReadonlySet<string>; toggle: (key: string) => void }) {
  const named = series.filter((one) => !one.faint);
  if (named.length < 2 && !always) return null;
  return (
    <ul class="legend">
      {named.map((one) => (
        <li key={one.key}>
          <button type="button" class="legend-item" aria-pressed={!hidden.has(one.key)} onClick={() => toggle(one.key)} title={hidden.has(one.key) ? "Show" : "Hide"}>
            <Swatch series={one} />
            <bdi>{one.label}</bdi>
          </button>
        </li>
      ))}
    </ul>
  );
}
