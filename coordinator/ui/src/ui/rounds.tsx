// A selector for a round.

interface Props {
  rounds: number[];
  value: number;
  best: number;
  onChange: (round: number) => void;
}

export function roundName(round: number): string {
  return round === 0 ? "start" : `round ${round}`;
}

export function RoundPicker({ rounds, value, best, onChange }: Props) {
  const at = rounds.indexOf(value);
  const step = (by: number) => {
    const next = rounds[at + by];
    if (next !== undefined) onChange(next);
  };
  return (
    <div class="segments" role="group" aria-label="Round">
      <button type="button" disabled={at <= 0} onClick={() => step(-1)} aria-label="Round before">
        ‹
      </button>
      <select aria-label="Round" value={String(value)} onChange={(event) => onChange(Number(event.currentTarget.value))}>
        {rounds.map((round) => (
          <option key={round} value={String(round)}>
            {roundName(round)}
            {round === best && round > 0 ? " (best)" : ""}
          </option>
        ))}
      </select>
      <button type="button" disabled={at < 0 || at >= rounds.length - 1} onClick={() => step(1)} aria-label="Next round">
        ›
      </button>
    </div>
  );
}
