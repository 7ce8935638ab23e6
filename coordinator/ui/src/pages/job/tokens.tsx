// A completion token by token, colored by log-probabilities.
import { useState } from "preact/hooks";
import type { PartialMessage } from "@protobuf-ts/runtime";
import type { CompletionToken, GetCompletionRequest } from "../../../gen/foil/v1/results.js";
import { useSource } from "../../app/context.js";
import { useAnswer } from "../../app/poll.js";
import { exact, fixed } from "../../model/format.js";
import { availableFigures, figureOf, summarize, TOKEN_FIGURES, tokenClass, type TokenFigure } from "../../model/tokens.js";
import { visible } from "../../ui/text.jsx";
import { Empty, Failed, Loading } from "../../ui/widgets.jsx";

const SHOWN = 1500;

export function Tokens({ request, id }: { request: PartialMessage<GetCompletionRequest>; id: string }) {
  const source = useSource();
  const answer = useAnswer((signal) => source.completion(request, signal), [id]);
  if (answer.problem) return <Failed problem={answer.problem} again={answer.again} />;
  if (!answer.value) return <Loading what="tokens" />;
  const { tokens, tokensNote } = answer.value;
  return (
    <>
      {tokensNote !== "" && <p class="note warning">{tokensNote}</p>}
      {tokens.length === 0 ? <Empty>This completion has no tokens here.</Empty> : <TokenText tokens={tokens} />}
    </>
  );
}

/** Makes spaces and line breaks at the ends of a token visible. */
function shownText(token: CompletionToken): string {
  return token.text === "" ? "\u2039\u203A" : visible(token.text).replaceAll("\n", "\u23CE\n");
}

function TokenText({ tokens }: { tokens: CompletionToken[] }) {
  const figures = availableFigures(tokens);
  const [wanted, setWanted] = useState<TokenFigure>("log_prob");
  const [at, setAt] = useState<number>();
  const [shown, setShown] = useState(SHOWN);
  const figure = figures.includes(wanted) ? wanted : (figures[0] ?? "log_prob");
  const total = summarize(tokens, figure);
  const move = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    setAt(Math.max(0, Math.min(Math.min(shown, tokens.length) - 1, (at ?? -by) + by)));
  };
  const point = (event: Event) => {
    const index = (event.target as HTMLElement).dataset["i"];
    if (index !== undefined) setAt(Number(index));
  };
  return (
    <div class="tokens">
      <div class="segments small" role="group" aria-label="Figure">
        {figures.map((one) => (
          <button type="button" key={one} aria-pressed={one === figure} onClick={() => setWanted(one)}>
            {TOKEN_FIGURES[one].name}
          </button>
        ))}
      </div>
      <p class="token-line" aria-live="polite">
        {at === undefined || !tokens[at] ? (
          <span class="muted">
            {total ? `Σ ${fixed(total.sum, 3)} nats over ${total.count} tokens, mean ${fixed(total.mean, 4)}. ` : ""}
            Point at a token for its exact figures.
          </span>
        ) : (
          <TokenLine token={tokens[at]} index={at} />
        )}
      </p>
      <div class="token-text" dir="auto" tabIndex={0} role="group" aria-label="Tokens; left and right arrow keys read their figures" onMouseOver={point} onClick={point} onKeyDown={move}>
        {tokens.slice(0, shown).map((token, i) => (
          <span key={i} data-i={i} class={`token ${tokenClass(figureOf(token, figure), figure)}${i === at ? " at" : ""}`}>
            {shownText(token)}
          </span>
        ))}
      </div>
      {tokens.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(tokens.length)}>
          Show all {tokens.length} tokens
        </button>
      )}
      <p class="sub">{TOKEN_FIGURES[figure].note}</p>
    </div>
  );
}

function TokenLine({ token, index }: { token: CompletionToken; index: number }) {
  const parts: [string, number | undefined][] = [
    ["log p", token.logProb],
    ["reference", token.refLogProb],
    ["difference", figureOf(token, "ratio")],
    ["trainer", token.oldLogProb],
  ];
  return (
    <>
      <strong>#{index + 1}</strong> <bdi class="mono">{JSON.stringify(visible(token.text))}</bdi> <span class="muted">id {token.id}</span>{" "}
      {parts.flatMap(([name, value]) => (value === undefined ? [] : [<span class="token-figure" key={name}>{name} {exact(Number(value.toPrecision(7)))}</span>]))}
      {token.logProb !== undefined && <span class="token-figure">p {exact(Number(Math.exp(token.logProb).toPrecision(4)))}</span>}
    </>
  );
}
