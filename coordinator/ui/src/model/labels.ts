// Selects jobs by labels with the syntax of `foil list --label`.

const KEY = /^([a-z0-9]([a-z0-9.-]*[a-z0-9])?\/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$/;

/** Parses `team=speech, env=prod` to a map, or returns why it is invalid. */
export function labelFilter(text: string): { labels: Record<string, string> } | { problem: string } {
  const labels: Record<string, string> = {};
  for (const part of text.split(",").map((one) => one.trim()).filter((one) => one !== "")) {
    const at = part.indexOf("=");
    if (at < 0) return { problem: `${part} is no label: write key=value, several with commas between` };
    const [key, value] = [part.slice(0, at).trim(), part.slice(at + 1).trim()];
    if (!KEY.test(key)) return { problem: `${key === "" ? "the empty text" : key} is no key of a label: letters, digits, '-', '_' and '.'` };
    labels[key] = value;
  }
  return { labels };
}
