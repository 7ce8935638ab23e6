// The timeline as lanes of bars.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { useNow } from "../../app/clock.js";
import type { Entry } from "../../model/feed.js";
import { clockTime, dateTime, duration } from "../../model/format.js";
import { lanesOf, ticks, type Span } from "../../model/spans.js";
import { Empty } from "../../ui/widgets.jsx";

const LANE = 22;
const HEAD = 22;
const ZOOMS = [1, 2, 4, 8, 16, 32];

const OUTCOMES = { committed: "committed", running: "running", broken: "interrupted" };

export function spanText(span: Span, now: number): string {
  const seconds = ((span.to ?? now) - span.from) / 1000;
  const parts = [
    span.phase,
    `attempt ${span.attempt}`,
    `${OUTCOMES[span.outcome]} after ${duration(seconds)}`,
    span.resumedAfterStep > 0n ? `resumed after step ${span.resumedAfterStep}` : "",
    span.failure === "" ? "" : `${span.failureClass}: ${span.failure}`,
  ];
  return parts.filter((part) => part !== "").join(", ");
}

export function Lanes({ spans, entries }: { spans: Span[]; entries: Entry[] }) {
  const running = spans.some((span) => span.outcome === "running");
  const now = useNow(running ? 1000 : 60_000);
  const [zoom, setZoom] = useState(1);
  const [width, setWidth] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const size = new ResizeObserver(() => setWidth(element.clientWidth));
    size.observe(element);
    return () => size.disconnect();
  }, [spans.length === 0]);
  const lanes = useMemo(() => lanesOf(spans, now), [spans, running ? now : 0]);
  const checkpoints = useMemo(() => entries.filter((entry) => entry.kind === "checkpoint" && entry.phase !== undefined), [entries]);
  if (spans.length === 0) return <Empty>No phase has started yet.</Empty>;

  const inner = Math.max(200, width * zoom - 2);
  const place = (at: number) => ((at - lanes.from) / (lanes.to - lanes.from)) * (inner - 8) + 4;
  const height = HEAD + lanes.lanes.length * LANE + 4;
  const broken = spans.filter((span) => span.outcome === "broken").length;
  const laneAt = new Map(lanes.lanes.map((lane, i) => [lane.name, HEAD + i * LANE]));
  const laneOf = new Map(spans.map((span) => [span.phase, span.lane]));
  const label = `Timeline from ${dateTime(lanes.from)} to ${dateTime(lanes.to)}: ${spans.length} spans of ${lanes.lanes.length} kinds of phases, ${broken} interrupted. The table on the tab Timeline has them all.`;
  return (
    <div class="card timeline">
      <div class="timeline-tools">
        <span class="key key-committed">committed</span>
        <span class="key key-running">running</span>
        <span class="key key-broken">interrupted</span>
        {checkpoints.length > 0 && <span class="key key-checkpoint">checkpoint</span>}
        <span class="grow" />
        <div class="segments" role="group" aria-label="Zoom">
          <button type="button" disabled={zoom === 1} onClick={() => setZoom(ZOOMS[ZOOMS.indexOf(zoom) - 1]!)} aria-label="Zoom out">
            −
          </button>
          <button type="button" disabled={zoom === 32} onClick={() => setZoom(ZOOMS[ZOOMS.indexOf(zoom) + 1]!)} aria-label="Zoom in">
            +
          </button>
        </div>
      </div>
      <div class="timeline-grid">
        <div class="timeline-names" style={{ paddingTop: `${HEAD}px` }} aria-hidden="true">
          {lanes.lanes.map((lane) => (
            <div key={lane.name} style={{ height: `${LANE}px`, lineHeight: `${LANE}px` }}>
              {lane.name}
            </div>
          ))}
        </div>
        <div class="scroll" ref={box} tabIndex={0} role="region" aria-label="Timeline">
          <svg width={inner} height={height} role="img" aria-label={label} class="timeline-svg">
            {ticks(lanes.from, lanes.to, Math.max(2, Math.floor(inner / 110)))
              .filter(({ at }) => place(at) < inner - 60)
              .map(({ at, step }) => (
              <g key={at} class="tick">
                <line x1={place(at)} x2={place(at)} y1={HEAD - 4} y2={height} />
                <text x={place(at) + 3} y={HEAD - 9}>
                  {step >= 86400 ? dateTime(at).slice(0, 10) : step >= 60 ? clockTime(at).slice(0, 5) : clockTime(at)}
                </text>
              </g>
            ))}
            {lanes.attempts.map(({ attempt, at }) => (
              <g key={attempt} class="attempt">
                <line x1={place(at)} x2={place(at)} y1={HEAD - 4} y2={height}>
                  <title>{`attempt ${attempt} from ${clockTime(at)}`}</title>
                </line>
              </g>
            ))}
            {lanes.lanes.map((lane) =>
              lane.spans.map((span) => (
                <Bar key={`${span.phase}-${span.attempt}-${span.from}`} span={span} y={laneAt.get(lane.name)!} from={place(span.from)} to={place(span.to ?? now)} text={spanText(span, now)} />
              )),
            )}
            {checkpoints.map((entry) => {
              const y = laneAt.get(laneOf.get(entry.phase!) ?? "");
              return y !== undefined && <Checkpoint key={`${entry.at}-${entry.text}`} entry={entry} x={place(entry.at)} y={y} />;
            })}
          </svg>
        </div>
      </div>
    </div>
  );
}

function Bar({ span, y, from, to, text }: { span: Span; y: number; from: number; to: number; text: string }) {
  const width = Math.max(2, to - from - 0.5);
  return (
    <g class={`span span-${span.outcome}`}>
      <rect x={from} y={y + 3} width={width} height={LANE - 6} rx={Math.min(3, width / 2)}>
        <title>{text}</title>
      </rect>
      {span.outcome === "broken" && <path d={`M${to - 4} ${y + 7}l7 8m0-8l-7 8`} class="cross" />}
      {width > 24 && span.round !== undefined && span.round > 0 && (
        <text x={from + width / 2} y={y + 15} class="span-label">
          {span.round}
        </text>
      )}
    </g>
  );
}

function Checkpoint({ entry, x, y }: { entry: Entry; x: number; y: number }) {
  return (
    <path class="checkpoint" d={`M${x} ${y + LANE - 8}l3.5 5h-7z`}>
      <title>{`${entry.phase}: ${entry.text}, ${clockTime(entry.at)}`}</title>
    </path>
  );
}
