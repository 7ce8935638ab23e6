// Tokens of a completion with their log-probabilities, and their color classes.
import type { CompletionToken } from "../../gen/foil/v1/results.js";

export type TokenFigure = "log_prob" | "ref_log_prob" | "ratio" | "drift";

export const TOKEN_FIGURES: Record<TokenFigure, { name: string; note: string; diverging: boolean }> = {
  log_prob: { name: "log p, policy", note: "log p of each token under the policy that wrote it, at temperature 1, in nats: the darker, the less expected.", diverging: false },
  ref_log_prob: { name: "log p, reference", note: "log p of each token under the reference policy, in nats: the darker, the less expected.", diverging: false },
  ratio: { name: "policy − reference", note: "log p under the policy minus log p under the reference, in nats: blue is more likely under the policy, orange less.", diverging: true },
  drift: { name: "trainer − sampler", note: "log p as training computed it minus log p as the sampler had it, in nats: what differs is rounding.", diverging: true },
};

export function figureOf(token: CompletionToken, figure: TokenFigure): number | undefined {
  const { logProb, refLogProb, oldLogProb } = token;
  switch (figure) {
    case "log_prob":
      return logProb;
    case "ref_log_prob":
      return refLogProb;
    case "ratio":
      return logProb === undefined || refLogProb === undefined ? undefined : logProb - refLogProb;
    case "drift":
      return logProb === undefined || oldLogProb === undefined ? undefined : oldLogProb - logProb;
  }
}

/** Figures that at least one token has. */
export function availableFigures(tokens: CompletionToken[]): TokenFigure[] {
  return (Object.keys(TOKEN_FIGURES) as TokenFigure[]).filter((figure) => tokens.some((token) => figureOf(token, figure) !== undefined));
}

/** Thresholds in nats between color classes. */
const SURPRISE = [0.1, 0.3, 0.7, 1.2, 2, 3, 4.5, 7];
const DIFFERENCE = [0.05, 0.2, 0.5, 1];

/** The class of a token: `surprise-0` (expected) to `surprise-8`, `less-4` to `more-4`, or none. */
export function tokenClass(value: number | undefined, figure: TokenFigure): string {
  if (value === undefined || Number.isNaN(value)) return "";
  if (!TOKEN_FIGURES[figure].diverging) return `surprise-${SURPRISE.filter((limit) => -value > limit).length}`;
  // Drift is some thousand times smaller than the differences between policies.
  const scale = figure === "drift" ? 1000 : 1;
  const level = DIFFERENCE.filter((limit) => Math.abs(value) * scale > limit).length;
  return level === 0 ? "" : `${value > 0 ? "more" : "less"}-${level}`;
}

export interface TokenSummary {
  count: number;
  sum: number;
  mean: number;
}

export function summarize(tokens: CompletionToken[], figure: TokenFigure): TokenSummary | undefined {
  const values = tokens.map((token) => figureOf(token, figure)).filter((value): value is number => value !== undefined);
  if (values.length === 0) return undefined;
  const sum = values.reduce((total, value) => total + value, 0);
  return { count: values.length, sum, mean: sum / values.length };
}
