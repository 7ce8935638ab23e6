// The data of a chart, independent of how it is drawn.

export interface Point {
  x: number;
  /** Null for a gap in the line. */
  y: number | null;
  /** Standard error. */
  se?: number | undefined;
  /** Ends of an interval: the 95 % interval, or the smallest and largest value that the point represents. */
  low?: number | undefined;
  high?: number | undefined;
  /** Name of the point in tables and tooltips, instead of x. */
  label?: string | undefined;
  /** Whether the point is drawn with a ring, like the best round. */
  marked?: boolean | undefined;
  /** Additional figures for the table: name and value. */
  more?: [string, number][] | undefined;
}

/** How points are connected: by x, in the given order, as the outline of a histogram, or not at all. */
export type Line = "line" | "path" | "outline" | "none";

export interface Series {
  key: string;
  label: string;
  /** Index into colors, dashes and shapes. */
  slot: number;
  points: Point[];
  line: Line;
  /** Whether to draw bars at each point, a band along the line, or neither. */
  spread: "bars" | "band" | "none";
  /** Whether the line is drawn in the background, without points. */
  faint?: boolean;
}

export interface Axis {
  label: string;
  unit?: string;
  /** Whether ticks are only at integers. */
  integer?: boolean;
  /** Limits that the axis does not exceed. */
  bounds?: [number | undefined, number | undefined];
  /** Exact range. */
  range?: [number, number];
}

export interface ChartSpec {
  /** Unique in the page. */
  id: string;
  title: string;
  note?: string | undefined;
  x: Axis;
  y: Axis;
  series: Series[];
  /** Whether a single series is named too, because the title does not name it. */
  legend?: boolean;
  /** A straight line between two points, for comparison. */
  reference?: { from: [number, number]; to: [number, number]; label: string };
  /** Named vertical lines. */
  dividers?: { x: number; label: string }[];
  /** The meaning of an interval without a standard error, for the table. */
  interval?: string;
}

/** The lowest and highest value that a point reaches. */
export function reach({ y, se, low, high }: Point): [number, number] | undefined {
  if (y === null || !Number.isFinite(y)) return undefined;
  const lower = se !== undefined && se > 0 ? y - se : (low ?? y);
  const upper = se !== undefined && se > 0 ? y + se : (high ?? y);
  return [Math.min(y, lower), Math.max(y, upper)];
}

/** The ranges of a series along which its band is drawn: two or more consecutive points with an interval. */
export function bands({ spread, points }: Series): Point[][] {
  const found: Point[][] = [[]];
  for (const point of spread === "band" ? points : []) {
    if (point.y === null || point.low === undefined) found.push([]);
    else found[found.length - 1]!.push(point);
  }
  return found.filter((stretch) => stretch.length > 1);
}

/** The range of an axis around values, with padding at both ends and within bounds. */
export function padded(min: number, max: number, axis: Axis): [number, number] {
  if (axis.range) return axis.range;
  if (!(max >= min)) return [0, 1];
  const span = max - min;
  const room = span > 0 ? span * 0.08 : Math.abs(max) * 0.1 || 1;
  const [lower, upper] = axis.bounds ?? [];
  const from = Math.max(min - room, lower ?? -Infinity);
  const to = Math.min(max + room, upper ?? Infinity);
  return to > from ? [from, to] : [from - room, to + room];
}

/** The range of the x axis, given the one that uPlot proposes. A range other than that of the points is a zoom. */
export function xRange(axis: Axis, xs: number[], min: number | null, max: number | null): [number, number] {
  if (min === null || max === null) return [0, 1];
  if (axis.range) return axis.range;
  // uPlot proposes a wider range around a single point.
  if (xs.length === 1) min = max = xs[0]!;
  if (min !== xs[0] || max !== xs[xs.length - 1]) return [min, max];
  if (!axis.integer) return padded(min, max, axis);
  const room = Math.max(0.25, (max - min) * 0.02);
  return [min - room, max + room];
}

/** The range of the values of the visible series. */
export function yRange(spec: ChartSpec, hidden: ReadonlySet<string>, within?: [number, number]): [number, number] {
  let [min, max] = [Infinity, -Infinity];
  for (const series of spec.series) {
    if (hidden.has(series.key)) continue;
    for (const point of series.points) {
      if (within && (point.x < within[0] || point.x > within[1])) continue;
      const found = reach(point);
      if (!found) continue;
      min = Math.min(min, found[0]);
      max = Math.max(max, found[1]);
    }
  }
  return padded(min, max, spec.y);
}

/**
 * The points of all series over one ascending list of x, as uPlot takes them: undefined where a series has no point at an
 * x, null where its line has a gap.
 */
export function aligned(series: Series[]): { xs: number[]; ys: (number | null | undefined)[][]; at: Map<number, Point>[] } {
  const xs = [...new Set(series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  const index = new Map(xs.map((x, i) => [x, i]));
  const at = series.map((one) => new Map(one.points.map((point) => [point.x, point])));
  const ys = series.map((one) => {
    const column = new Array<number | null | undefined>(xs.length).fill(undefined);
    for (const point of one.points) column[index.get(point.x)!] = point.y;
    return column;
  });
  return { xs, ys, at };
}
