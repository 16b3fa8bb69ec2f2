/** One run: how it is asked for, followed and stopped. What happens in it goes to a listener. */

import { type Api, ServerError, bytesOf, readLines } from "./api.ts";
import type { Size, Terminal } from "./terminal.ts";
import type { CaseResult, Draft, Result, RunEvent } from "./types.ts";

const MOST_TYPED = 32 << 10;
/** Bytes in a message; the server takes twice as many. */

export interface Listener {
  stage(step: string): void;
  output(stream: "stdout" | "stderr", data: Uint8Array): void;
  case(result: CaseResult): void;
}

/** The body of `POST /run` for a draft. */
export function bodyOf(draft: Draft, tty?: Size): Record<string, unknown> {
  const { language, files, mode, stdin, cases, compare } = draft;
  const args = splitArguments(draft.args);
  const collect = splitArguments(draft.collect);
  return {
    language,
    files: Object.fromEntries(files.map(({ name, text }) => [name, text])),
    ...(args.length && { args }),
    ...(mode === "stdin" && { stdin, ...(collect.length && { collect }) }),
    ...(mode === "cases" && {
      cases: cases.map((one) => ({ stdin: one.stdin, ...(one.expected !== null && { expected_stdout: one.expected, compare }) })),
      stop_at_first_failure: draft.stopEarly,
    }),
    ...(tty && { tty }),
  };
}

/** Arguments as a shell would split them; it knows quotes, and a backslash in double ones. */
export function splitArguments(text: string): string[] {
  const found: string[] = [];
  for (const [word] of text.matchAll(/(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']|["'])+/g)) {
    found.push(word.replace(/"((?:[^"\\]|\\.)*)"|'([^']*)'/g, (_, double, single) => single ?? double.replace(/\\(.)/g, "$1")));
  }
  return found;
}

export class Run {
  private readonly abort = new AbortController();
  private id = "";
  private stopped = false;

  constructor(
    private readonly api: Api,
    private readonly listener: Listener,
  ) {}

  /** Run it; its result. The run ends if the page goes away. */
  async follow(draft: Draft): Promise<Result> {
    const answer = await this.api.post("run?stream=jsonl", bodyOf(draft), this.abort.signal);
    this.id = /runs\/(\w+)/.exec(answer.headers.get("Content-Location") ?? "")?.[1] ?? "";
    for await (const event of readLines(answer)) {
      const result = this.take(event);
      if (result) return result;
    }
    throw lost();
  }

  /** Run it in a terminal; its result. */
  async attend(draft: Draft, terminal: Terminal): Promise<Result> {
    const answer = await this.api.post("start", bodyOf(draft, terminal.size));
    this.id = (await answer.json()).id;
    if (this.stopped) {
      await this.api.end(this.id);
      throw lost();
    }
    const leave = () => void this.api.end(this.id);
    addEventListener("pagehide", leave);
    const socket = this.api.attach(this.id);
    socket.binaryType = "arraybuffer";
    const send = (data: Uint8Array | string) => socket.readyState === WebSocket.OPEN && socket.send(data as Uint8Array<ArrayBuffer>);
    terminal.typed = (data) => {
      for (let at = 0; at < data.length; at += MOST_TYPED) send(data.subarray(at, at + MOST_TYPED)); // much may be pasted
    };
    terminal.resized = (size) => send(JSON.stringify({ type: "resize", ...size }));
    try {
      return await new Promise<Result>((resolve, reject) => {
        socket.onmessage = ({ data }) => {
          const result = this.take(JSON.parse(data) as RunEvent);
          if (result) resolve(result);
        };
        socket.onclose = () => reject(lost());
      });
    } catch (error) {
      await this.api.end(this.id).catch(() => {}); // nobody can type to it any more
      throw error;
    } finally {
      terminal.typed = terminal.resized = () => {};
      removeEventListener("pagehide", leave);
      socket.close();
    }
  }

  /** End it: its events then say so. Before the server has named it, its request is dropped. */
  async stop(): Promise<void> {
    this.stopped = true;
    if (this.id) await this.api.end(this.id);
    else this.abort.abort();
  }

  /** Whether the user has stopped it. */
  get isStopped(): boolean {
    return this.stopped;
  }

  private take(event: RunEvent): Result | null {
    switch (event.event) {
      case "stage":
        this.listener.stage(event.step);
        break;
      case "stdout":
      case "stderr":
        this.listener.output(event.event, bytesOf(event.data, event.base64));
        break;
      case "case":
        this.listener.case(event);
        break;
      case "done":
        return event.result ?? null;
    }
    return null;
  }
}

const lost = () =>
  new ServerError({ code: "lost", message: "the connection to the server was lost", hint: "the run may have ended; run it again" });
