// A chart in its card: drawing, legend, tooltip, and the same figures as a table.
import { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { themeVersion } from "../app/theme.js";
import { compact, exact } from "../model/format.js";
import { download } from "../ui/download.js";
import { Legend, Swatch } from "./legend.jsx";
import { csv, figures, pointText, summary, xText } from "./figures.js";
import { Plot, type Hit } from "./plot.js";
import type { ChartSpec, Point } from "./spec.js";

const HEIGHT = 220;
const ROWS_SHOWN = 200;

export function Chart({ spec, height = HEIGHT }: { spec: ChartSpec; height?: number }) {
  const [view, setView] = useState<"chart" | "table">("chart");
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const title = useId();
  const toggle = (key: string) => {
    const next = new Set(hidden);
    if (!next.delete(key)) next.add(key);
    setHidden(next);
  };
  const other = view === "chart" ? "table" : "chart";
  return (
    <figure class="card chart" id={`chart-${spec.id}`} aria-labelledby={title}>
      <header class="chart-head">
        <h3 id={title}>
          {spec.title}
          {spec.y.unit && <span class="unit"> {spec.y.unit}</span>}
        </h3>
        <div class="chart-tools">
          {view === "table" && (
            <button type="button" class="quiet" onClick={() => download(`${spec.id}.csv`, "text/csv", csv(spec))}>
              CSV
            </button>
          )}
          <button type="button" class="quiet" onClick={() => setView(other)} aria-label={`Show ${spec.title} as ${other === "table" ? "a table" : "a chart"}`}>
            {other === "table" ? "Table" : "Chart"}
          </button>
        </div>
      </header>
      {spec.note && <figcaption>{spec.note}</figcaption>}
      <Legend series={spec.series} always={spec.legend ?? false} hidden={hidden} toggle={toggle} />
      {view === "chart" ? <Canvas spec={spec} hidden={hidden} height={height} /> : <Figures spec={spec} />}
    </figure>
  );
}

function Canvas({ spec, hidden, height }: { spec: ChartSpec; hidden: ReadonlySet<string>; height: number }) {
  const target = useRef<HTMLDivElement>(null);
  const plot = useRef<Plot | undefined>(undefined);
  const [hit, setHit] = useState<Hit | undefined>(undefined);
  const latest = useRef({ spec, hidden });
  latest.current = { spec, hidden };

  useEffect(() => {
    const element = target.current!;
    let shown = false;
    const show = () => {
      const { spec, hidden } = latest.current;
      plot.current = new Plot(element, spec, hidden, height, setHit);
    };
    // A page has many charts. Those out of sight are not drawn yet.
    const sight = new IntersectionObserver(
      (entries) => {
        if (!shown && entries.some((entry) => entry.isIntersecting)) {
          shown = true;
          sight.disconnect();
          show();
        }
      },
      { rootMargin: "300px" },
    );
    sight.observe(element);
    const size = new ResizeObserver(() => plot.current?.resize());
    size.observe(element);
    const unfollow = themeVersion.subscribe(() => plot.current?.recolor());
    return () => {
      sight.disconnect();
      size.disconnect();
      unfollow();
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [height]);

  useEffect(() => plot.current?.update(spec, hidden), [spec, hidden]);

  const keys = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Escape: 0 } as const;
    const found = step[event.key as keyof typeof step];
    if (found === undefined) return;
    event.preventDefault();
    plot.current?.step(found);
  };
  const description = useMemo(() => summary(spec), [spec]);
  return (
    <div class="chart-body">
      <div
        ref={target}
        class="chart-canvas"
        style={{ minHeight: `${height}px` }}
        role="img"
        aria-label={`${description} Left and right arrow keys read the points.`}
        tabIndex={0}
        onKeyDown={keys}
        onBlur={() => plot.current?.step(0)}
      />
      {hit && <Tooltip spec={spec} hit={hit} />}
      <p class="visually-hidden" aria-live="polite">
        {hit && document.activeElement === target.current ? hitText(spec, hit) : ""}
      </p>
    </div>
  );
}

function hitName(spec: ChartSpec, hit: Hit): string {
  return hit.points.find(({ point }) => point.label)?.point.label ?? xText(spec, hit.x);
}

function hitText(spec: ChartSpec, hit: Hit): string {
  const figures = hit.points.map(({ series, point }) => `${series.label} ${pointText(point)}`);
  return `${hitName(spec, hit)}: ${figures.join(", ")}`;
}

function intervalText(point: Point): string {
  const { se, low, high } = point;
  if (se !== undefined && se > 0) return `± ${exact(Number(se.toPrecision(3)))}`;
  if (low !== undefined && high !== undefined) return `[${compact(low)}, ${compact(high)}]`;
  return "";
}

const TOOLTIP_SERIES = 12;
/** Pixels by which a tooltip may extend beyond the drawing on either side. */
const EDGE = 10;

function Tooltip({ spec, hit }: { spec: ChartSpec; hit: Hit }) {
  const element = useRef<HTMLDivElement>(null);
  // Placed above the drawing, so that it hides no point, and within the card.
  useLayoutEffect(() => {
    const { style, offsetWidth } = element.current!;
    style.left = `${Math.max(-EDGE, Math.min(hit.width + EDGE - offsetWidth, hit.left - offsetWidth / 2))}px`;
  });
  const named = hit.points.filter(({ series }) => !series.faint);
  return (
    <div class="tooltip" ref={element} style={{ maxWidth: `${hit.width + 2 * EDGE}px` }} role="presentation">
      <div class="tooltip-head">
        <bdi>{hitName(spec, hit)}</bdi>
        {hit.points.some(({ point }) => point.marked) && <span class="tag">best round</span>}
        {!spec.x.integer && <span class="muted"> {spec.x.label} {compact(hit.x)}</span>}
      </div>
      <table>
        <tbody>
          {named.slice(0, TOOLTIP_SERIES).map(({ series, point }) => (
            <tr key={series.key}>
              <td>
                <Swatch series={series} /> <bdi>{series.label}</bdi>
              </td>
              <td class="number">{exact(Number(point.y!.toPrecision(6)))}</td>
              <td class="number muted">{intervalText(point)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {named.length > TOOLTIP_SERIES && <div class="muted">and {named.length - TOOLTIP_SERIES} more</div>}
    </div>
  );
}

function Figures({ spec }: { spec: ChartSpec }) {
  const { head, rows } = useMemo(() => figures(spec), [spec]);
  const [shown, setShown] = useState(ROWS_SHOWN);
  return (
    <div class="scroll figures" tabIndex={0} role="region" aria-label={`Figures of ${spec.title}`}>
      <table class="data">
        <thead>
          <tr>
            {head.map((name, i) => (
              <th key={i} scope="col" class={i === 0 ? "" : "number"}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, shown).map((row, i) => (
            <tr key={i}>
              {row.map((text, j) => (
                <td key={j} class={j === 0 ? "" : "number"}>
                  {text}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > shown && (
        <button type="button" onClick={() => setShown(shown + 5 * ROWS_SHOWN)}>
          Show more of {rows.length} rows
        </button>
      )}
    </div>
  );
}
