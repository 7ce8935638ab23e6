// Synthetic completions: texts, figures and tokens that depend only on round and prompt.
import {
  Completion,
  CompletionRow,
  CompletionSet,
  CompletionToken,
  GetCompletionResponse,
  GetDistributionsResponse,
  ListCompletionsResponse,
  CalibrationSource,
  RewardSource,
  Selection,
  type CompletionRound,
  type GetCompletionRequest,
  type GetDistributionsRequest,
  type ListCompletionsRequest,
  type RoundDistributions,
} from "../../gen/foil/v1/results.js";
import { queryRows } from "../../src/model/completions.js";
import { chance, hash, normal } from "./made.js";
import { CODES, Refusal } from "./grpcWeb.js";

const WORDS =
  "the a river letters model careful answer because therefore water light small golden reward stone quiet language window garden between after before never always perhaps kind simple clear honest train policy bridge morning".split(" ");

export function sentence(words: number, ...keys: number[]): string {
  const found = Array.from({ length: words }, (_, i) => WORDS[Math.floor(chance(...keys, i) * WORDS.length)]!);
  const text = found.join(" ");
  return text[0]!.toUpperCase() + text.slice(1) + ".";
}

export interface SampleSet {
  prompts: number;
  /** Rounds with completions; 0 is the start policy. */
  rounds: number[];
  /** Alternative texts for some rows, as written by an attacker or a broken model. */
  hostile?: string[];
}

function text(set: SampleSet, round: number, prompt: number, index: number): string {
  const hostile = set.hostile?.[prompt];
  if (hostile !== undefined && index === 0) return hostile;
  return sentence(8 + Math.floor(chance(round, prompt, index, 6) * 22), round, prompt, index);
}

function completion(set: SampleSet, kind: CompletionSet, round: number, prompt: number, index: number): Completion {
  const body = text(set, round, prompt, index);
  const bytes = Buffer.byteLength(body);
  const words = body.slice(0, 2000).split(" ").length;
  const training = kind === CompletionSet.TRAINING;
  return Completion.create({
    round,
    index,
    text: { text: body.length > 2048 ? body.slice(0, 2048) : body, bytes: BigInt(bytes) },
    tokens: words + 2,
    finished: chance(round, prompt, index, 8) > 0.06,
    reward: 0.2 * round + 0.5 * normal(prompt, 21) + 0.5 * normal(round, prompt, index, 22),
    ...(kind === CompletionSet.EVALUATION ? { gold: 2.6 + 0.3 * round + 0.6 * normal(round, prompt, 23), kl: 0.4 * round + Math.abs(normal(round, prompt, 24)) } : {}),
    logProb: -2.1 * words + normal(round, prompt, index, 25),
    selection: training ? [Selection.CHOSEN, Selection.UNUSED, Selection.UNUSED, Selection.REJECTED][(index + prompt) % 4]! : Selection.UNSPECIFIED,
  });
}

function row(set: SampleSet, kind: CompletionSet, prompt: number, rounds: number[]): CompletionRow {
  const count = kind === CompletionSet.TRAINING ? 4 : 1;
  const question = set.hostile?.[prompt] ?? `${sentence(5 + (prompt % 9), prompt, 3).slice(0, -1)}?`;
  const golden = kind === CompletionSet.GOLDEN;
  return CompletionRow.create({
    promptId: BigInt(prompt),
    prompt:
      prompt % 5 === 4
        ? [
            { role: "system", text: { text: "You are a careful assistant.", bytes: 28n } },
            { role: "user", text: { text: question.slice(0, 2048), bytes: BigInt(Buffer.byteLength(question)) } },
          ]
        : [{ role: "user", text: { text: question.slice(0, 2048), bytes: BigInt(Buffer.byteLength(question)) } }],
    ...(golden ? { golden: { text: sentence(24, prompt, 99), bytes: BigInt(Buffer.byteLength(sentence(24, prompt, 99))) }, heldOut: true } : {}),
    ...(golden ? { goldenRewards: rounds.map((round) => ({ round, reward: 2 + 0.4 * normal(prompt, round, 31) })) } : {}),
    completions: rounds.flatMap((round) => Array.from({ length: count }, (_, index) => completion(set, kind, round, prompt, index))),
    ...(rounds.length > 1 ? { disagreement: Math.abs(normal(prompt, 41)) * 2 } : {}),
  });
}

function roundInfo(round: number): CompletionRound {
  return {
    round,
    phase: `r${String(round).padStart(2, "0")}.policy.evaluate`,
    purpose: "policy.evaluate",
    policy: { artifact: `policy@${round}`, blake3: hash(round, 51) },
    ...(round > 0 ? { reward: { artifact: `reward@${round}`, blake3: hash(round, 52) } } : {}),
    attempt: 1,
  };
}

export function listCompletions(set: SampleSet, request: ListCompletionsRequest): ListCompletionsResponse {
  const kind = request.set || CompletionSet.EVALUATION;
  const available = kind === CompletionSet.EVALUATION ? set.rounds : set.rounds.filter((round) => round > 0);
  const many = available.length > 8 ? [available[0]!, ...available.slice(-7)] : available;
  const rounds = request.rounds.length > 0 ? request.rounds : many;
  if (rounds.length > 8) throw new Refusal(CODES.INVALID_ARGUMENT, `rounds: ${rounds.length} are given; at most 8 can be shown`);
  const size = request.pageSize || 20;
  const from = Number(request.pageToken || request.offset);
  const filter = request.filter;
  const plain = request.sort <= 1 && !request.descending && !filter?.contains && filter?.finished === undefined && !filter?.selection && filter?.minReward === undefined;
  let [rows, total]: [CompletionRow[], number] = [[], set.prompts];
  if (plain) {
    rows = Array.from({ length: Math.min(size, set.prompts - from) }, (_, i) => row(set, kind, from + i, rounds));
  } else {
    const all = Array.from({ length: set.prompts }, (_, i) => row(set, kind, i, rounds));
    const found = queryRows(all, { sort: request.sort, descending: request.descending, sortRound: request.sortRound ?? rounds[rounds.length - 1]!, filter });
    [rows, total] = [found.slice(from, from + size), found.length];
  }
  return {
    rows,
    nextPageToken: from + size < total ? String(from + size) : "",
    total: BigInt(total),
    totalUnfiltered: BigInt(set.prompts),
    rounds: rounds.map(roundInfo),
    availableRounds: available,
    seed: 7,
  };
}

export function getCompletion(set: SampleSet, request: GetCompletionRequest): GetCompletionResponse {
  const prompt = Number(request.promptId);
  const body = text(set, request.round, prompt, request.index);
  const found = row(set, request.set, prompt, [request.round]);
  const pieces = body.slice(0, 4000).match(/ ?[^ ]+/g) ?? [];
  const tokens = pieces.map((piece, i) => {
    const logProb = -Math.abs(normal(request.round, prompt, i, 61)) * (chance(i, prompt, 62) > 0.85 ? 4 : 0.8);
    return CompletionToken.create({ id: 200 + i, text: piece, logProb, refLogProb: logProb + 0.4 * normal(i, prompt, 63), oldLogProb: logProb + 1e-6 * normal(i, 64) });
  });
  tokens.push(CompletionToken.create({ id: 2, text: "</s>", logProb: -0.02, refLogProb: -0.4, oldLogProb: -0.02 }));
  const whole = completion(set, request.set, request.round, prompt, request.index);
  return {
    completion: { ...whole, text: { text: body, bytes: BigInt(Buffer.byteLength(body)) } },
    prompt: found.prompt.map((message) => (message.role === "user" && set.hostile?.[prompt] ? { role: "user", text: { text: set.hostile[prompt]!, bytes: BigInt(Buffer.byteLength(set.hostile[prompt]!)) } } : message)),
    ...(found.golden ? { golden: found.golden } : {}),
    round: roundInfo(request.round),
    tokens,
    tokensNote: "",
    seed: 7,
  };
}

function distributionsOf(round: number): RoundDistributions {
  const bins = 40;
  const edges = Array.from({ length: bins + 1 }, (_, i) => -4 + (i * 9) / bins);
  const histogram = (source: RewardSource, mean: number, sd: number, n: number) => {
    const counts = new Array<number>(bins).fill(0);
    for (let i = 0; i < n; i += 1) {
      const value = mean + sd * normal(round, source, i, 71);
      const bin = Math.floor(((value + 4) / 9) * bins);
      if (bin >= 0 && bin < bins) counts[bin]! += 1;
    }
    return { source, counts: counts.map(BigInt), count: BigInt(n), mean, standardDeviation: sd, min: mean - 3 * sd, max: mean + 3 * sd };
  };
  const reliability = (source: CalibrationSource, shift: number, n: number) => ({
    source,
    ece: 0.041 + shift,
    bins: Array.from({ length: 10 }, (_, i) => {
      const confidence = i / 10 + 0.052;
      const count = Math.round(n * (0.4 + Math.abs(i - 4.5) / 4));
      const accuracy = Math.min(1, Math.max(0, confidence + shift * Math.sin(6.28 * confidence) + 0.02 * normal(round, i, source)));
      return { lower: i / 10, upper: (i + 1) / 10, count: BigInt(count), confidence, accuracy };
    }),
  });
  return {
    round,
    reward: { artifact: `reward@${round}`, blake3: hash(round, 52) },
    edges,
    goldEdges: Array.from({ length: bins + 1 }, (_, i) => (i * 6) / bins),
    histograms: [
      histogram(RewardSource.GOLDEN, 1.9, 0.8, 640),
      histogram(RewardSource.GOLDEN_COMPLETIONS, 0.1 + 0.08 * round, 1, 2560),
      histogram(RewardSource.CHOSEN, 0.6, 1.1, 609),
      histogram(RewardSource.REJECTED, -0.5, 1.1, 609),
      histogram(RewardSource.TRAINING, 0.2 + 0.1 * round, 0.9, 4000),
      histogram(RewardSource.EVALUATION, 0.3 + 0.1 * round, 0.9, 500),
    ],
    reliability: [reliability(CalibrationSource.HUMAN, 0.05, 80), reliability(CalibrationSource.FRESH, 0.09, 40)],
  };
}

export function distributions(set: SampleSet, request: GetDistributionsRequest): GetDistributionsResponse {
  const available = set.rounds.filter((round) => round > 0);
  const many = available.length > 8 ? [available[0]!, ...available.slice(-7)] : available;
  const rounds = request.rounds.length > 0 ? request.rounds : many;
  return { rounds: rounds.map(distributionsOf), availableRounds: available };
}
