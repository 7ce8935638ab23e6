// Numbers, times and sizes as text.

/** Placeholder for a missing figure. */
export const NONE = "–";

const MINUS = "\u2212";

function withMinus(text: string): string {
  return text.startsWith("-") ? MINUS + text.slice(1) : text;
}

/** A number with fixed digits, with halves rounded to even like on the command line. A rounded zero has no sign. */
export function fixed(value: number, digits: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : `${MINUS}∞`;
  let text = value.toFixed(digits);
  // The numbers exactly between two decimals, which toFixed rounds away from zero, are the odd multiples of this power of two.
  if (Math.abs((value * 2 ** (digits + 1)) % 2) === 1) text = text.replace(/[13579]$/, (odd) => `${+odd - 1}`);
  return withMinus(/^-0(\.0*)?$/.test(text) ? text.slice(1) : text);
}

/** A number with about four significant digits: 0.7512, 12.34, 1,234, 1.2e−7. */
export function compact(value: number): string {
  if (!Number.isFinite(value)) return fixed(value, 0);
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replaceAll("-", MINUS).replace("e+", "e");
  if (size >= 1000) return count(Math.round(value));
  const digits = Math.max(0, 3 - Math.floor(Math.log10(size)));
  return fixed(value, Math.min(digits, 4));
}

/** Ticks of an axis that are `step` apart, with enough digits to distinguish them. */
export function tick(value: number, step: number): string {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e7 || step < 1e-4) {
    return Number(value.toPrecision(4)).toExponential().replaceAll("-", MINUS).replace("e+", "e");
  }
  let digits = 0;
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits += 1;
  return Math.abs(value) >= 1000 && digits === 0 ? count(value) : fixed(value, digits);
}

/** All digits of a double, for tables and tooltips. */
export function exact(value: number): string {
  if (!Number.isFinite(value)) return fixed(value, 0);
  return withMinus(String(Number(value.toPrecision(9)))).replaceAll("e-", `e${MINUS}`);
}

/** Digits after the point: enough for two significant digits of the error, and at least `least`. */
export function digitsOf(least: number, error = 0): number {
  const digits = 1 - Math.floor(Math.log10(error));
  // Because of rounding, errors of equal values are not quite 0.
  return digits > least && digits <= 8 ? digits : least;
}

export interface Estimate {
  value: number;
  /** Standard error. */
  se?: number | undefined;
  /** Ends of the 95 % interval, for a rate without a standard error. */
  low?: number | undefined;
  high?: number | undefined;
}

/** A value with its standard error, rounded to two significant digits of the error: 0.750 ± 0.020. */
export function estimate({ value, se, low, high }: Estimate): string {
  if (se !== undefined && se > 0) {
    const digits = digitsOf(0, se);
    if (se < 1e-4) return `${compact(value)} ± ${compact(se)}`;
    return `${fixed(value, digits)} ± ${fixed(se, digits)}`;
  }
  if (low !== undefined && high !== undefined) return `${fixed(value, 3)} [${fixed(low, 3)}, ${fixed(high, 3)}]`;
  return compact(value);
}

export function count(value: number | bigint): string {
  return withMinus(value.toLocaleString("en-US"));
}

/** `1 round`, `2 rounds`. */
export function counted(value: number | bigint, unit: string): string {
  const plural = unit.endsWith("y") && !/[aeo]y$/.test(unit) ? `${unit.slice(0, -1)}ies` : /(s|x|ch|sh)$/.test(unit) ? `${unit}es` : `${unit}s`;
  return `${count(value)} ${Number(value) === 1 ? unit : plural}`;
}

export function bytes(value: number | bigint): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let [size, unit] = [Number(value), 0];
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? size : fixed(size, size < 10 ? 2 : size < 100 ? 1 : 0)} ${units[unit]}`;
}

/** `0.24 s`, `45 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return NONE;
  const sign = seconds < 0 ? MINUS : "";
  const size = Math.abs(seconds);
  if (size < 10) return `${sign}${size < 0.01 && size > 0 ? (size * 1000).toFixed(1) + " ms" : Number(size.toFixed(2)) + " s"}`;
  const whole = Math.round(size);
  if (whole < 60) return `${sign}${whole} s`;
  const two = (value: number) => String(value).padStart(2, "0");
  if (whole < 3600) return `${sign}${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = Math.round(size / 60);
  if (minutes < 60 * 24) return `${sign}${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  const hours = Math.round(size / 3600);
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A remaining time, which is only approximate: `a few seconds`, `about 9 s`. */
export function timeLeft(seconds: number): string {
  return seconds < 5 ? "a few seconds" : `about ${duration(Math.round(seconds))}`;
}

/** The largest unit only: `45 s`, `3 min`, `2 h`, `5 d`. */
export function age(seconds: number): string {
  const size = Math.max(0, seconds);
  if (size < 60) return `${Math.floor(size)} s`;
  if (size < 3600) return `${Math.floor(size / 60)} min`;
  if (size < 86400) return `${Math.floor(size / 3600)} h`;
  return `${Math.floor(size / 86400)} d`;
}

/** Age in seconds from which a date is more useful than an age. */
export const DATED = 30 * 86400;

/** Local date and time to the second: 2026-03-01 14:05:09. */
export function dateTime(ms: number): string {
  const date = new Date(ms);
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${clockTime(ms)}`;
}

export function clockTime(ms: number): string {
  const date = new Date(ms);
  const two = (value: number) => String(value).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
