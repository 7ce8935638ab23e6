// A chart on a canvas, with a cursor controlled by mouse and keyboard.
import uPlot from "uplot";
import { tick } from "../model/format.js";
import { background, foreground, type Drawing } from "./draw.js";
import { colorOf, dashOf, theme } from "./marks.js";
import { aligned, xRange, yRange, type ChartSpec, type Point, type Series } from "./spec.js";

export interface Hit {
  x: number;
  /** Position in CSS pixels within the container. */
  left: number;
  width: number;
  points: { series: Series; point: Point }[];
}

export class Plot {
  private plot: uPlot | undefined;
  private drawing: Drawing;
  private at: Map<number, Point>[] = [];
  private xs: number[] = [];

  constructor(
    private readonly target: HTMLElement,
    spec: ChartSpec,
    hidden: ReadonlySet<string>,
    private readonly height: number,
    private readonly onHit: (hit: Hit | undefined) => void,
  ) {
    this.drawing = { spec, hidden, theme: theme() };
    this.rebuild();
  }

  /** Redraws a changed chart and keeps the cursor. */
  update(spec: ChartSpec, hidden: ReadonlySet<string>) {
    const same = spec.series.length === this.drawing.spec.series.length && spec.series.every((one, i) => one.slot === this.drawing.spec.series[i]!.slot && one.line === this.drawing.spec.series[i]!.line);
    this.drawing = { spec, hidden, theme: this.drawing.theme };
    if (!same || !this.plot) return this.rebuild();
    this.plot.batch(() => {
      spec.series.forEach((series, i) => this.plot!.setSeries(i + 1, { show: !hidden.has(series.key) }));
      // New points do not reset a zoom.
      const { min = 0, max = 0 } = this.plot!.scales["x"]!;
      const zoomed = min > this.xs[0]! || max < this.xs[this.xs.length - 1]!;
      this.plot!.setData(this.data(), !zoomed);
      if (zoomed) this.plot!.setScale("x", { min, max });
    });
  }

  /** Rereads the colors. */
  recolor() {
    this.drawing.theme = theme();
    this.rebuild();
  }

  resize() {
    const width = this.target.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  /** Moves the cursor to the next point to the right (1) or left (-1), or removes it (0). */
  step(direction: -1 | 0 | 1) {
    const u = this.plot;
    if (!u || this.xs.length === 0) return;
    if (direction === 0) return u.setCursor({ left: -10, top: -10 });
    const last = this.xs.length - 1;
    let index = u.cursor.idx ?? (direction > 0 ? -1 : last + 1);
    do index += direction;
    while (index > 0 && index < last && this.at.every((points) => (points.get(this.xs[index]!)?.y ?? null) === null));
    index = Math.max(0, Math.min(last, index));
    u.setCursor({ left: u.valToPos(this.xs[index]!, "x"), top: u.over.clientHeight / 2 });
  }

  destroy() {
    this.plot?.destroy();
    this.plot = undefined;
  }

  private data(): uPlot.AlignedData {
    const { xs, ys, at } = aligned(this.drawing.spec.series);
    [this.xs, this.at] = [xs, at];
    return [xs, ...ys];
  }

  private rebuild() {
    this.destroy();
    this.plot = new uPlot(this.options(), this.data(), this.target);
  }

  private options(): uPlot.Options {
    const { spec } = this.drawing;
    const series = spec.series.map((one): uPlot.Series => {
      const color = colorOf(this.drawing.theme, one.slot);
      const outline = one.line === "outline";
      return {
        stroke: color,
        width: one.faint ? 1 : 1.6,
        ...(one.faint ? { alpha: 0.35 } : {}),
        dash: outline ? [] : dashOf(one.slot),
        show: !this.drawing.hidden.has(one.key),
        points: { show: false },
        ...(outline ? { fill: `${color}2e`, paths: uPlot.paths.stepped!({ align: 1 }) } : {}),
        ...(one.line === "none" || one.line === "path" ? { paths: () => null } : {}),
      };
    });
    return {
      width: Math.max(120, this.target.clientWidth),
      height: this.height,
      padding: [10, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false, dist: 5 }, points: { show: false } },
      scales: {
        x: { time: false, range: (_, min, max) => xRange(this.drawing.spec.x, this.xs, min, max) },
        y: { range: (u) => yRange(this.drawing.spec, this.drawing.hidden, this.shown(u)) },
      },
      axes: [this.axis(spec.x.integer === true), { ...this.axis(false), size: (_, values) => 14 + 6.4 * Math.max(2, ...(values ?? []).map((text) => text.length)) }],
      series: [{}, ...series],
      hooks: {
        drawAxes: [(u) => background(u, this.drawing)],
        draw: [(u) => foreground(u, this.drawing)],
        setCursor: [(u) => this.hit(u)],
      },
    };
  }

  private shown(u: uPlot): [number, number] | undefined {
    const [from, to] = u.series[0]?.idxs ?? [];
    const [low, high] = [this.xs[from ?? -1], this.xs[to ?? -1]];
    return low === undefined || high === undefined ? undefined : [low, high];
  }

  private axis(integer: boolean): uPlot.Axis {
    const { text, grid, font } = this.drawing.theme;
    const start = integer && this.drawing.spec.series.some((one) => one.points.some((point) => point.x === 0 && point.label === "start"));
    return {
      stroke: text,
      font,
      grid: { stroke: grid, width: 1 },
      ticks: { show: false },
      border: { show: false },
      gap: 6,
      size: 30,
      space: integer ? 40 : 34,
      values: (_, splits, __, ___, step) => splits.map((value) => (value === null ? "" : start && value === 0 ? "start" : tick(value, step))),
      ...(integer ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] } : {}),
    };
  }

  private hit(u: uPlot) {
    const { idx, left } = u.cursor;
    const at = idx === null || idx === undefined || left === undefined || left < 0 ? undefined : this.xs[idx];
    if (at === undefined) return this.onHit(undefined);
    const points = this.drawing.spec.series.flatMap((series, i) => {
      const point = this.drawing.hidden.has(series.key) ? undefined : this.at[i]!.get(at);
      return point && point.y !== null ? [{ series, point }] : [];
    });
    const offset = u.over.offsetLeft;
    this.onHit(points.length > 0 ? { x: at, left: u.valToPos(at, "x") + offset, width: this.target.clientWidth, points } : undefined);
  }
}
