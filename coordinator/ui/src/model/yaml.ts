// Formats JSON values as YAML, to display a specification.

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const PLAIN = /^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*$/;
const WORDS = /^(true|false|null|yes|no|on|off|y|n|~)$/i;

function scalar(value: Json): string {
  if (typeof value === "string") return PLAIN.test(value) && !WORDS.test(value) ? value : JSON.stringify(value);
  return String(value);
}

function isScalar(value: Json): boolean {
  return value === null || typeof value !== "object";
}

function lines(value: Json, indent: string): string[] {
  if (Array.isArray(value)) {
    return value.flatMap((item) => {
      if (isScalar(item)) return [`${indent}- ${scalar(item)}`];
      const [first, ...rest] = lines(item, `${indent}  `);
      return [`${indent}- ${(first ?? "{}").trimStart()}`, ...rest];
    });
  }
  if (value === null || typeof value !== "object") return [`${indent}${scalar(value)}`];
  return Object.entries(value).flatMap(([key, item]) => {
    const name = `${indent}${scalar(key)}:`;
    if (isScalar(item)) return [`${name} ${scalar(item)}`];
    if (Array.isArray(item) && item.every(isScalar)) return [`${name} [${item.map(scalar).join(", ")}]`];
    const inner = lines(item, `${indent}  `);
    return inner.length === 0 ? [`${name} {}`] : [name, ...inner];
  });
}

export function yaml(value: unknown): string {
  return lines(value as Json, "").join("\n");
}
