// A server for gRPC-Web calls in binary format, for tests.
import { createReadStream, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { join } from "node:path";
import type { IMessageType } from "@protobuf-ts/runtime";
import { Delay, ErrorInfo, RetryInfo, Status } from "../../gen/google/rpc/error_details.js";

export class Refusal extends Error {
  constructor(
    readonly code: number,
    message: string,
    readonly details: { leader?: string; reason?: string; retrySeconds?: number } = {},
  ) {
    super(message);
  }
}

export const CODES = { INVALID_ARGUMENT: 3, NOT_FOUND: 5, PERMISSION_DENIED: 7, RESOURCE_EXHAUSTED: 8, UNIMPLEMENTED: 12, UNAVAILABLE: 14, UNAUTHENTICATED: 16 };

export interface Call {
  authorization: string | undefined;
  /** Aborted when the browser disconnects. */
  signal: AbortSignal;
}

interface Method {
  input: IMessageType<object>;
  output: IMessageType<object>;
  handle: (request: object, call: Call) => AsyncIterable<object> | Promise<object> | object;
}

export type Methods = Map<string, Method>;

export function method<I extends object, O extends object>(
  methods: Methods,
  path: string,
  input: IMessageType<I>,
  output: IMessageType<O>,
  handle: (request: I, call: Call) => AsyncIterable<O> | Promise<O> | O,
) {
  methods.set(path, { input, output, handle } as unknown as Method);
}

function frame(kind: number, bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head[0] = kind;
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

function statusDetails({ leader, reason, retrySeconds }: Refusal["details"]): string | undefined {
  const details = [];
  if (leader !== undefined || reason !== undefined) {
    const info = ErrorInfo.create({ reason: reason ?? "NOT_LEADER", domain: "foil", metadata: leader ? { leader } : {} });
    details.push({ typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: ErrorInfo.toBinary(info) });
  }
  if (retrySeconds !== undefined) {
    const retry = RetryInfo.create({ retryDelay: Delay.create({ seconds: BigInt(retrySeconds) }) });
    details.push({ typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: RetryInfo.toBinary(retry) });
  }
  return details.length === 0 ? undefined : Buffer.from(Status.toBinary({ details })).toString("base64").replace(/=+$/, "");
}

function statusOf(refusal: Refusal | undefined): Record<string, string> {
  const details = refusal && statusDetails(refusal.details);
  return {
    "grpc-status": String(refusal?.code ?? 0),
    ...(refusal ? { "grpc-message": encodeURIComponent(refusal.message) } : {}),
    ...(details ? { "grpc-status-details-bin": details } : {}),
  };
}

function trailers(refusal: Refusal | undefined): Buffer {
  const lines = Object.entries(statusOf(refusal)).map(([name, value]) => `${name}:${value}\r\n`);
  return frame(0x80, Buffer.from(lines.join("")));
}

async function body(request: IncomingMessage): Promise<Buffer> {
  const parts = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

async function answer(method: Method, request: IncomingMessage, response: ServerResponse) {
  const stop = new AbortController();
  response.on("close", () => stop.abort());
  const input = method.input.fromBinary((await body(request)).subarray(5));
  const head = { "content-type": "application/grpc-web+proto" };
  let refusal: Refusal | undefined;
  const send = (message: object) => {
    if (!response.headersSent) response.writeHead(200, head);
    response.write(frame(0, method.output.toBinary(message)));
  };
  try {
    const result = method.handle(input, { authorization: request.headers.authorization, signal: stop.signal });
    if (Symbol.asyncIterator in result) {
      for await (const message of result as AsyncIterable<object>) {
        if (stop.signal.aborted) return;
        send(message);
      }
    } else {
      send(await result);
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refusal = error;
  }
  // A status that follows no message is sent in the headers, like tonic does.
  if (response.headersSent) response.end(trailers(refusal));
  else response.writeHead(200, { ...head, ...statusOf(refusal) }).end();
}

/** The content security policy that the coordinator sends with its pages. */
export const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const TYPES: Record<string, string> = { "app.js": "text/javascript", "app.css": "text/css" };

export interface Options {
  dist: string;
  ready: () => { ok: boolean; text: string };
}

/** Serves the pages and the methods on the loopback interface, at a free port or the given one. */
export async function serve(methods: Methods, { dist, ready }: Options, port = 0): Promise<{ server: Server; url: string }> {
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? "/", "http://stub").pathname;
    const found = methods.get(path);
    if (request.method === "POST") {
      if (!found) return void response.writeHead(200, { "content-type": "application/grpc-web+proto", "grpc-status": "12", "grpc-message": "unknown" }).end();
      return void answer(found, request, response).catch((error: unknown) => {
        console.error(path, error);
        response.destroy();
      });
    }
    if (path === "/readyz") {
      const { ok, text } = ready();
      return void response.writeHead(ok ? 200 : 503).end(text);
    }
    const name = path.slice(1);
    const headers = { "content-security-policy": CSP, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" };
    if (TYPES[name]) {
      response.writeHead(200, { ...headers, "content-type": TYPES[name] });
      return void createReadStream(join(dist, name)).pipe(response);
    }
    response.writeHead(200, { ...headers, "content-type": "text/html; charset=utf-8" }).end(readFileSync(join(dist, "index.html")));
  });
  server.keepAliveTimeout = 500;
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return { server, url: `http://127.0.0.1:${address.port}` };
}
