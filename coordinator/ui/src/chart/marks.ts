// Colors, dashes and shapes that distinguish series, even without color.

export const SLOTS = 8;

const DASHES: number[][] = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4], [1, 4], [6, 2, 1, 2, 1, 2]];

export type Shape = "circle" | "square" | "triangle" | "diamond" | "down" | "cross";
const SHAPES: Shape[] = ["circle", "square", "triangle", "diamond", "down", "cross"];

export function dashOf(slot: number): number[] {
  return DASHES[slot % DASHES.length]!;
}

export function shapeOf(slot: number): Shape {
  return SHAPES[slot % SHAPES.length]!;
}

/** The corners of a shape around the origin, with the same area as a circle of `radius`; empty for a circle. */
export function corners(shape: Shape, radius: number): [number, number][] {
  const [side, high] = [radius * 0.9, radius * 1.2];
  switch (shape) {
    case "square":
      return [[-side, -side], [side, -side], [side, side], [-side, side]];
    case "triangle":
      return [[0, -high], [high, high * 0.8], [-high, high * 0.8]];
    case "down":
      return [[0, high], [high, -high * 0.8], [-high, -high * 0.8]];
    case "diamond":
      return [[0, -high], [high, 0], [0, high], [-high, 0]];
    case "cross": {
      const thin = radius * 0.4;
      return [
        [-thin, -high], [thin, -high], [thin, -thin], [high, -thin], [high, thin], [thin, thin],
        [thin, high], [-thin, high], [-thin, thin], [-high, thin], [-high, -thin], [-thin, -thin],
      ];
    }
    case "circle":
      return [];
  }
}

export interface Theme {
  series: string[];
  grid: string;
  text: string;
  ink: string;
  surface: string;
  font: string;
}

/** The current colors from the style sheet. */
export function theme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const read = (name: string) => style.getPropertyValue(name).trim();
  return {
    series: Array.from({ length: SLOTS }, (_, i) => read(`--series-${i + 1}`)),
    grid: read("--grid"),
    text: read("--muted"),
    ink: read("--ink"),
    surface: read("--surface"),
    font: `11px ${style.fontFamily || "sans-serif"}`,
  };
}

export function colorOf(theme: Theme, slot: number): string {
  return theme.series[slot % SLOTS]!;
}
