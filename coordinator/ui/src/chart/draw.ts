// Elements that uPlot does not draw: bands, error bars, shapes, lines in a given order, dividers.
import type uPlot from "uplot";
import { bands, type ChartSpec, type Point, type Series } from "./spec.js";
import { colorOf, corners, dashOf, shapeOf, type Theme } from "./marks.js";

/** Maximum number of points of a line whose shapes are drawn. */
const MAX_SHAPES = 130;
const RADIUS = 3.4;
/** Maximum number of dividers that are drawn as lines; beyond it, only names are shown. */
const MAX_DIVIDERS = 24;

export interface Drawing {
  spec: ChartSpec;
  theme: Theme;
  hidden: ReadonlySet<string>;
}

function visible({ spec, hidden }: Drawing): Series[] {
  return spec.series.filter((series) => !hidden.has(series.key));
}

/** Space for shapes beyond the ends of the axes. */
const MARGIN = 9;

function clipped(u: uPlot, margin: number, draw: (context: CanvasRenderingContext2D, ratio: number) => void) {
  const { left, top, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.beginPath();
  const room = margin * devicePixelRatio;
  u.ctx.rect(left - room, top - room, width + 2 * room, height + 2 * room);
  u.ctx.clip();
  u.ctx.setLineDash([]);
  draw(u.ctx, devicePixelRatio);
  u.ctx.restore();
}

const x = (u: uPlot, value: number) => u.valToPos(value, "x", true);
const y = (u: uPlot, value: number) => u.valToPos(value, "y", true);

/** Draws the layer below the lines. */
export function background(u: uPlot, drawing: Drawing) {
  const { spec, theme } = drawing;
  clipped(u, 0, (context, ratio) => {
    for (const series of visible(drawing)) band(u, context, series, colorOf(theme, series.slot));
    if (spec.reference) reference(u, context, ratio, drawing);
    dividers(u, context, ratio, drawing);
  });
}

function band(u: uPlot, context: CanvasRenderingContext2D, series: Series, color: string) {
  context.fillStyle = color;
  context.globalAlpha = 0.16;
  for (const stretch of bands(series)) {
    context.beginPath();
    for (const point of stretch) context.lineTo(x(u, point.x), y(u, point.high!));
    for (const point of stretch.toReversed()) context.lineTo(x(u, point.x), y(u, point.low!));
    context.fill();
  }
  context.globalAlpha = 1;
}

function reference(u: uPlot, context: CanvasRenderingContext2D, ratio: number, { spec, theme }: Drawing) {
  const { from, to } = spec.reference!;
  context.strokeStyle = theme.text;
  context.lineWidth = ratio;
  context.setLineDash([4 * ratio, 4 * ratio]);
  context.beginPath();
  context.moveTo(x(u, from[0]), y(u, from[1]));
  context.lineTo(x(u, to[0]), y(u, to[1]));
  context.stroke();
  context.setLineDash([]);
}

function dividers(u: uPlot, context: CanvasRenderingContext2D, ratio: number, { spec, theme }: Drawing) {
  const found = spec.dividers ?? [];
  const room = u.bbox.width / ratio / Math.max(1, found.length);
  const every = Math.max(1, Math.ceil(26 / room));
  context.strokeStyle = theme.grid;
  context.fillStyle = theme.text;
  context.lineWidth = ratio;
  context.font = theme.font.replace("11px", `${10 * ratio}px`);
  context.textBaseline = "top";
  found.forEach((divider, i) => {
    const at = x(u, divider.x);
    if (found.length <= MAX_DIVIDERS) {
      context.beginPath();
      context.moveTo(at, u.bbox.top);
      context.lineTo(at, u.bbox.top + u.bbox.height);
      context.stroke();
    }
    if (i % every === 0) context.fillText(divider.label, at + 3 * ratio, u.bbox.top + 2 * ratio);
  });
}

/** Draws the layer above the lines. */
export function foreground(u: uPlot, drawing: Drawing) {
  clipped(u, MARGIN, (context, ratio) => {
    for (const series of visible(drawing)) {
      const color = colorOf(drawing.theme, series.slot);
      context.strokeStyle = context.fillStyle = color;
      if (series.line === "path") path(u, context, ratio, series);
      if (series.faint || series.line === "outline") continue;
      const banded = new Set(bands(series).flat());
      if (series.spread !== "none") for (const point of series.points) if (!banded.has(point)) bar(u, context, ratio, point);
      const few = series.points.length <= MAX_SHAPES;
      for (const point of series.points) if (few || point.marked) shape(u, context, ratio, series.slot, point, drawing);
    }
  });
}

function path(u: uPlot, context: CanvasRenderingContext2D, ratio: number, series: Series) {
  context.lineWidth = 1.6 * ratio;
  context.lineJoin = "round";
  context.setLineDash(dashOf(series.slot).map((length) => length * ratio));
  context.beginPath();
  let open = false;
  for (const point of series.points) {
    if (point.y !== null) context[open ? "lineTo" : "moveTo"](x(u, point.x), y(u, point.y));
    open = point.y !== null;
  }
  context.stroke();
  context.setLineDash([]);
}

function bar(u: uPlot, context: CanvasRenderingContext2D, ratio: number, { x: at, y: mean, se, low, high }: Point) {
  if (mean === null) return;
  const ends = se !== undefined && se > 0 ? [mean - se, mean + se] : low !== undefined && high !== undefined ? [low, high] : undefined;
  if (!ends) return;
  const [center, from, to, cap] = [x(u, at), y(u, ends[0]!), y(u, ends[1]!), 3 * ratio];
  context.lineWidth = 1.2 * ratio;
  context.beginPath();
  context.moveTo(center, from);
  context.lineTo(center, to);
  for (const end of [from, to]) {
    context.moveTo(center - cap, end);
    context.lineTo(center + cap, end);
  }
  context.stroke();
}

function shape(u: uPlot, context: CanvasRenderingContext2D, ratio: number, slot: number, point: Point, { theme }: Drawing) {
  if (point.y === null) return;
  const [left, top] = [x(u, point.x), y(u, point.y)];
  const outline = (radius: number) => {
    context.beginPath();
    const found = corners(shapeOf(slot), radius);
    if (found.length === 0) context.arc(left, top, radius, 0, 2 * Math.PI);
    found.forEach(([dx, dy], i) => context[i === 0 ? "moveTo" : "lineTo"](left + dx, top + dy));
    context.closePath();
  };
  outline(RADIUS * ratio);
  context.fill();
  if (!point.marked) return;
  const color = context.strokeStyle;
  context.strokeStyle = theme.ink;
  context.lineWidth = 1.5 * ratio;
  context.beginPath();
  context.arc(left, top, 7.5 * ratio, 0, 2 * Math.PI);
  context.stroke();
  context.strokeStyle = color;
}
