// The events of a job, newest first.
import type { Entry } from "../../model/feed.js";
import { bytes, clockTime, dateTime } from "../../model/format.js";
import { LongText } from "../../ui/text.jsx";

export function Events({ entries, last }: { entries: Entry[]; last: number }) {
  return (
    <ol class="events card" tabIndex={0} aria-label="Events, the last one first">
      {entries
        .slice(-last)
        .reverse()
        .map((entry) => (
          <li key={`${entry.at}-${entry.kind}-${entry.phase}-${entry.text}`} class={`event event-${entry.kind}`}>
            <time title={dateTime(entry.at)}>{clockTime(entry.at)}</time>
            <span>
              {entry.phase && <span class="mono">{entry.phase}</span>} <LongText text={entry.text} shown={600} />
              {entry.attempt !== undefined && entry.attempt > 1 && <span class="muted"> (attempt {entry.attempt})</span>}
              {entry.bytes !== undefined && <span class="muted"> ({bytes(entry.bytes)})</span>}
            </span>
          </li>
        ))}
    </ol>
  );
}
