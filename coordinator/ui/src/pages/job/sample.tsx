// One prompt with its golden answer and its completions, with a column for each round.
import { useState } from "preact/hooks";
import { Selection, type ChatMessage, type Completion, type CompletionRound, type CompletionRow, type CompletionSet } from "../../../gen/foil/v1/results.js";
import { useSource } from "../../app/context.js";
import { counted, fixed } from "../../model/format.js";
import { roundName } from "../../ui/rounds.jsx";
import { LongText } from "../../ui/text.jsx";
import { Tokens } from "./tokens.jsx";

const SHOWN = 700;

interface RowProps {
  jobId: string;
  set: CompletionSet;
  row: CompletionRow;
  rounds: CompletionRound[];
  best: number;
}

export function SampleRow({ jobId, set, row, rounds, best }: RowProps) {
  const source = useSource();
  const first = row.completions[0];
  // The full prompt and golden answer come with any of their completions.
  const whole = (part: "golden" | number) =>
    first &&
    (async () => {
      const answer = await source.completion({ jobId, set, round: first.round, promptId: row.promptId, index: first.index });
      return (part === "golden" ? answer.golden : answer.prompt[part]?.text)?.text ?? "";
    });
  return (
    <article class="card sample" aria-label={`Prompt ${row.promptId}`}>
      <header class="sample-head">
        <span class="muted">prompt {String(row.promptId)}</span>
        {row.heldOut && <span class="tag">held out</span>}
        {row.disagreement !== undefined && (
          <span class="muted" title="The largest difference between rounds, each reward in standard deviations from the mean of its round">
            disagreement {fixed(row.disagreement, 2)} SD
          </span>
        )}
      </header>
      <div class="prompt">
        {row.prompt.map((message, i) => (
          <Message key={i} message={message} alone={row.prompt.length === 1} whole={whole(i) || undefined} />
        ))}
      </div>
      {row.golden && (
        <div class="golden">
          <div class="column-head">
            <strong>golden answer</strong>
            {row.goldenRewards.map((one) => (
              <span class="figure" key={one.round}>
                {roundName(one.round)} <b>{fixed(one.reward, 3)}</b>
              </span>
            ))}
          </div>
          <LongText text={row.golden.text} total={row.golden.bytes} whole={whole("golden") || undefined} shown={SHOWN} />
        </div>
      )}
      <div class="columns" tabIndex={0} role="group" aria-label="Completions by round">
        {rounds.map((round) => (
          <section class={`column${round.round === best && best > 0 ? " best" : ""}`} key={round.round} aria-label={roundName(round.round)}>
            <div class="column-head">
              <strong>{roundName(round.round)}</strong>
              {round.round === best && best > 0 && <span class="tag">best</span>}
            </div>
            {row.completions
              .filter((one) => one.round === round.round)
              .map((one) => (
                <CompletionBox key={one.index} jobId={jobId} set={set} promptId={row.promptId} completion={one} />
              ))}
            {!row.completions.some((one) => one.round === round.round) && <p class="muted">none</p>}
          </section>
        ))}
      </div>
    </article>
  );
}

function Message({ message, alone, whole }: { message: ChatMessage; alone: boolean; whole: (() => Promise<string>) | undefined }) {
  return (
    <div class={`message role-${alone ? "alone" : "named"}`}>
      {!alone && (
        <span class="role">
          <bdi>{message.role}</bdi>
        </span>
      )}
      <LongText text={message.text?.text ?? ""} total={message.text?.bytes} whole={whole} shown={SHOWN} />
    </div>
  );
}

const SELECTIONS: Partial<Record<Selection, string>> = {
  [Selection.CHOSEN]: "chosen",
  [Selection.REJECTED]: "rejected",
  [Selection.USED]: "used",
};

function CompletionBox({ jobId, set, promptId, completion }: { jobId: string; set: CompletionSet; promptId: bigint; completion: Completion }) {
  const source = useSource();
  const [tokens, setTokens] = useState(false);
  const request = { jobId, set, round: completion.round, promptId, index: completion.index };
  const figures: [string, number | undefined, string][] = [
    ["reward", completion.reward, "By the round's reward model"],
    ["gold", completion.gold, "Gold reward"],
    ["KL", completion.kl, "Σ KL(π ‖ π_ref) over its positions, in nats"],
    ["log p", completion.logProb, "log p of the whole completion under the policy that wrote it, in nats"],
  ];
  const selection = SELECTIONS[completion.selection];
  return (
    <div class={`completion${selection ? ` selection-${selection}` : ""}`}>
      {tokens ? (
        <Tokens request={request} id={`${set}-${completion.round}-${promptId}-${completion.index}`} />
      ) : (
        <LongText
          text={completion.text?.text ?? ""}
          total={completion.text?.bytes}
          whole={async () => (await source.completion(request)).completion?.text?.text ?? ""}
          shown={SHOWN}
        />
      )}
      <div class="figures-line">
        {figures.flatMap(([name, value, title]) =>
          value === undefined
            ? []
            : [
                <span class="figure" key={name} title={`${title}: ${value}`}>
                  {name} <b>{fixed(value, 3)}</b>
                </span>,
              ],
        )}
        <span class="figure">{counted(completion.tokens, "token")}</span>
        {!completion.finished && (
          <span class="tag warn" title="max_new_tokens cut it">
            truncated
          </span>
        )}
        {selection && <span class={`tag tag-${selection}`}>{selection}</span>}
        {source.hasTokens(request) && (
          <button type="button" class="quiet" aria-pressed={tokens} onClick={() => setTokens(!tokens)}>
            {tokens ? "As text" : "Per token"}
          </button>
        )}
      </div>
    </div>
  );
}
