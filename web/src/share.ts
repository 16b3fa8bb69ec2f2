/** Drafts as links: JSON, deflated, as base64url in the fragment, which browsers do not send. */

import type { Draft } from "./types.ts";

const MOST = 4 << 20;
/** Bytes of a draft that is unpacked; a link may come from anybody. */

/** The draft as a fragment's value. */
export async function pack(draft: Draft): Promise<string> {
  const stream = new Blob([JSON.stringify(draft)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The draft in a fragment's value. Throws where there is none. */
export async function unpack(value: string): Promise<Draft> {
  const packed = Uint8Array.from(atob(value.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
  const reader = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (let size = 0; ; ) {
    const { value: part, done } = await reader.read();
    if (done) break;
    size += part.length;
    if (size > MOST) {
      await reader.cancel();
      throw new RangeError(`a draft has at most ${MOST} bytes`);
    }
    parts.push(part);
  }
  return check(JSON.parse(await new Blob(parts).text()));
}

/** A draft with every field of its type, whatever a link held. */
export function check(found: unknown): Draft {
  const given = record(found);
  const files = list(given.files).map(record);
  if (!files.length) throw new TypeError("a draft has files");
  return {
    language: text(given.language),
    files: files.map((file) => ({ name: text(file.name), text: text(file.text) })),
    mode: choice(given.mode, ["stdin", "cases", "terminal"]),
    args: text(given.args),
    stdin: text(given.stdin),
    collect: text(given.collect),
    cases: list(given.cases)
      .map(record)
      .map((one) => ({ stdin: text(one.stdin), expected: one.expected === null ? null : text(one.expected) })),
    compare: choice(given.compare, ["trimmed", "tokens", "exact"]),
    stopEarly: given.stopEarly === true,
  };
}

const record = (value: unknown) => (typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {});
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const text = (value: unknown) => (typeof value === "string" ? value : "");
const choice = <T extends string>(value: unknown, allowed: [T, ...T[]]): T => allowed.find((one) => one === value) ?? allowed[0];
