// The figures of a chart as a table, and as CSV.
import { compact, count, estimate, exact, NONE } from "../model/format.js";
import type { ChartSpec, Point } from "./spec.js";

export interface FigureTable {
  head: string[];
  rows: string[][];
}

function hasErrors(points: Point[]): boolean {
  return points.some((point) => point.se !== undefined && point.se > 0);
}

function hasInterval(points: Point[]): boolean {
  return points.some((point) => point.low !== undefined && point.high !== undefined);
}

function xName(spec: ChartSpec): string {
  return spec.x.unit ? `${spec.x.label} (${spec.x.unit})` : spec.x.label;
}

function xs(spec: ChartSpec): number[] {
  const all = spec.series.flatMap((series) => series.points.filter((point) => point.y !== null).map((point) => point.x));
  return [...new Set(all)].sort((a, b) => a - b);
}

function table(spec: ChartSpec, write: (value: number) => string, none: string): FigureTable {
  const named = spec.series.some((series) => series.points.some((point) => point.label !== undefined));
  const head = [...(named ? ["point"] : []), ...(named && spec.x.integer ? [] : [xName(spec)])];
  const columns = spec.series.map((series) => {
    const [errors, interval] = [hasErrors(series.points), hasInterval(series.points)];
    const more = [...new Set(series.points.flatMap((point) => (point.more ?? []).map(([name]) => name)))];
    const ends = spec.interval ? `, ${spec.interval}` : "";
    head.push(series.label, ...(errors ? [`${series.label}: standard error`] : []));
    if (interval) head.push(`${series.label}: lower end${ends}`, `${series.label}: upper end${ends}`);
    head.push(...more.map((name) => `${series.label}: ${name}`));
    return { at: new Map(series.points.map((point) => [point.x, point])), errors, interval, more };
  });
  const cell = (value: number | null | undefined) => (value === undefined || value === null ? none : write(value));
  const rows = xs(spec).map((x) => {
    const points = columns.map(({ at }) => at.get(x));
    const label = points.find((point) => point?.label !== undefined)?.label ?? `${spec.x.label} ${write(x)}`;
    const row = [...(named ? [label] : []), ...(named && spec.x.integer ? [] : [write(x)])];
    columns.forEach(({ errors, interval, more }, i) => {
      const point = points[i];
      row.push(cell(point?.y), ...(errors ? [cell(point?.se)] : []), ...(interval ? [cell(point?.low), cell(point?.high)] : []));
      row.push(...more.map((name) => cell(point?.more?.find(([other]) => other === name)?.[1])));
    });
    return row;
  });
  return { head, rows };
}

export function figures(spec: ChartSpec): FigureTable {
  return table(spec, exact, NONE);
}

/** The figures as CSV with full precision, with texts quoted so that they are not read as formulas. */
export function csv(spec: ChartSpec): string {
  const { head, rows } = table(spec, String, "");
  const quoted = (text: string) => (/^-?\d/.test(text) && !/[",\n]/.test(text) ? text : `"${text.replace(/^[=+\-@]/, "'$&").replaceAll('"', '""')}"`);
  return [head, ...rows].map((row) => row.map((text) => (text === "" ? "" : quoted(text))).join(",")).join("\n") + "\n";
}

export function pointText(point: Point): string {
  return point.y === null ? NONE : estimate({ value: point.y, se: point.se });
}

/** A position on the x axis in words: `round 2`. */
export function xText(spec: ChartSpec, x: number): string {
  return `${spec.x.label} ${spec.x.integer ? count(x) : compact(x)}`;
}

/** A description of the chart in one sentence, for screen readers. */
export function summary(spec: ChartSpec): string {
  const lines = spec.series.filter((series) => !series.faint).map((series) => {
    const shown = series.points.filter((point) => point.y !== null);
    const [first, last] = [shown[0], shown[shown.length - 1]];
    if (!first || !last) return `${series.label}: no figures`;
    const name = (point: Point) => point.label ?? xText(spec, point.x);
    return `${series.label}: ${pointText(first)} at ${name(first)}, ${pointText(last)} at ${name(last)}`;
  });
  return `${spec.title} over ${spec.x.label}. ${lines.join("; ")}.`;
}
