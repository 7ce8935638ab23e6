// Texts from models and users: any characters, any length, either direction.
import { useState } from "preact/hooks";
import { bytes } from "../model/format.js";

/** Maximum number of characters shown before a long text is expanded. */
const SHOWN = 2000;

/** Maximum number of lines shown before it is expanded. */
const LINES = 30;

/** Truncates to a number of characters and lines, never within a surrogate pair. */
export function cut(text: string, length: number, lines = LINES): string {
  let end = Math.min(text.length, length);
  for (let at = -1, line = 0; line < lines; line += 1) {
    at = text.indexOf("\n", at + 1);
    if (at < 0 || at >= end) break;
    if (line === lines - 1) end = at;
  }
  if (end < text.length && /[\uD800-\uDBFF]/.test(text[end - 1] ?? "")) end -= 1;
  return text.slice(0, end);
}

const CONTROLS = /[\u0000-\u0008\u000B-\u001F\u007F]/g;
/** Characters that change the order of the surrounding text. */
const REORDERING = /[\u202A-\u202E\u2066-\u2069]/g;

/** Replaces control and reordering characters by symbols, because they would hide or move text. Line breaks and tabs are kept. */
export function visible(text: string): string {
  return text
    .replace(CONTROLS, (found) => (found === "\u007F" ? "\u2421" : String.fromCharCode(0x2400 + found.charCodeAt(0))))
    .replace(REORDERING, (found) => `\u27E8U+${found.charCodeAt(0).toString(16).toUpperCase()}\u27E9`);
}

interface LongTextProps {
  text: string;
  /** Length of the whole text in bytes, if it may be truncated. */
  total?: bigint | undefined;
  /** Fetches the whole text. Without it, a truncated text is only marked as such. */
  whole?: (() => Promise<string>) | undefined;
  shown?: number;
}

export function LongText({ text, total, whole, shown = SHOWN }: LongTextProps) {
  const [open, setOpen] = useState(false);
  const [fetched, setFetched] = useState<{ text: string } | { error: string }>();
  const isCut = total !== undefined && total > BigInt(new TextEncoder().encode(text).length);
  const full = fetched && "text" in fetched ? fetched.text : text;
  const visibleText = open ? full : cut(full, shown);
  const more = full.length > visibleText.length || (isCut && !(fetched && "text" in fetched));
  const show = async () => {
    setOpen(true);
    if (!isCut || fetched || !whole) return;
    try {
      setFetched({ text: await whole() });
    } catch (error) {
      setFetched({ error: error instanceof Error ? error.message : String(error) });
    }
  };
  if (text === "" && !isCut) return <span class="muted">(empty)</span>;
  return (
    <span class="long">
      <span class="text" dir="auto">
        {visible(visibleText)}
        {more && "…"}
      </span>
      {more && (!open || (isCut && whole && !fetched)) && (
        <button type="button" class="quiet" onClick={show}>
          Show all{total !== undefined ? ` (${bytes(total)})` : ` (${full.length.toLocaleString("en-US")} characters)`}
        </button>
      )}
      {more && open && isCut && !whole && <span class="muted"> cut; {bytes(total)} in all</span>}
      {open && !more && cut(full, shown).length < full.length && (
        <button type="button" class="quiet" onClick={() => setOpen(false)}>
          Show less
        </button>
      )}
      {fetched && "error" in fetched && <span class="error-text">{fetched.error}</span>}
    </span>
  );
}
