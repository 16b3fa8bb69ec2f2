/** The server: its key, its errors, and events as they come. */

import type { Failure, Language, Result, RunEvent } from "./types.ts";

/** An error that the server, or the way to it, answered with. */
export class ServerError extends Error {
  readonly hint: string;
  readonly code: string;

  constructor(failure: Failure) {
    super(failure.message);
    this.hint = failure.hint;
    this.code = failure.code;
  }
}

/** What of the page this server has. */
export interface Features {
  cases: boolean;
  collect: boolean;
  terminal: boolean;
}

const KEY = "mayfly-key";

export class Api {
  /** `ask` gets a key from the user, or "" if there is none. */
  constructor(private readonly ask: (refused: boolean) => Promise<string>) {}

  /** The key, kept for as long as the browser's tab is open. */
  get key(): string {
    return sessionStorage.getItem(KEY) ?? "";
  }

  set key(key: string) {
    sessionStorage.setItem(KEY, key);
  }

  /** An answer of status 2xx. Asks for a key where the server wants one. */
  async call(path: string, init: RequestInit = {}): Promise<Response> {
    for (;;) {
      const headers = new Headers(init.headers);
      if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
      const answer = await fetch(path, { ...init, headers, credentials: "omit", referrerPolicy: "no-referrer" }).catch((error: Error) => {
        if (error.name === "AbortError") throw error;
        throw new ServerError({ code: "unreachable", message: "the server does not answer", hint: "see whether it still runs" });
      });
      if (answer.ok) return answer;
      if (answer.status !== 401) throw await failure(answer);
      const key = await this.ask(this.key !== "");
      if (!key) throw await failure(answer);
      this.key = key;
    }
  }

  post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
    const init: RequestInit = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    return this.call(path, signal ? { ...init, signal } : init);
  }

  async languages(): Promise<Language[]> {
    const answer = (await (await this.call("languages")).json()) as { languages: Language[] };
    return answer.languages;
  }

  async features(): Promise<Features> {
    const description = await (await this.call("openapi.json")).json();
    const body = description.paths["/run"]?.post?.requestBody?.content["application/json"]?.schema?.$ref ?? "";
    const fields = description.components?.schemas?.[body.split("/").at(-1)]?.properties ?? {};
    const terminal = "tty" in fields && "/runs/{id}/attach" in description.paths;
    return { cases: "cases" in fields, collect: "collect" in fields, terminal };
  }

  async result(id: string): Promise<Result> {
    return (await this.call(`runs/${id}`)).json();
  }

  /** End a run, even while the page goes away. */
  async end(id: string): Promise<void> {
    await this.call(`runs/${id}`, { method: "DELETE", keepalive: true });
  }

  /** The connection of a terminal. A browser sends no header with it, so the key is a subprotocol. */
  attach(id: string): WebSocket {
    const url = new URL(`runs/${id}/attach`, document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return new WebSocket(url, this.key ? ["mayfly", `bearer.${this.key}`] : ["mayfly"]);
  }
}

async function failure(answer: Response): Promise<ServerError> {
  const body = await answer.json().catch(() => null);
  const found = body?.error as Failure | undefined;
  return new ServerError(found ?? { code: "unknown", message: `the server answered with ${answer.status}`, hint: "" });
}

/** The objects in an answer of JSON lines, each as soon as it is there. */
export async function* readLines(answer: Response): AsyncGenerator<RunEvent> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop()!;
    for (const line of lines) if (line) yield JSON.parse(line) as RunEvent;
  }
}

/** The bytes that an event or a result has as text or as base64. */
export function bytesOf(text: string | undefined, base64: string | undefined): Uint8Array {
  if (base64 === undefined) return new TextEncoder().encode(text ?? "");
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** The same as text; bytes that are not UTF-8 become U+FFFD. */
export function textOf(text: string | undefined, base64: string | undefined): string {
  return base64 === undefined ? (text ?? "") : new TextDecoder().decode(bytesOf(text, base64));
}
