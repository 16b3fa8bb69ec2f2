// Loads a function, `node .mayfly/shim.mjs MODULE.NAME`, and serves requests to it over descriptor 3 (agent/PROTOCOL.md,
// "Functions"). The function's folder is the working directory. Runs on Node 18 and newer.
import crypto from "node:crypto";
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import net from "node:net";
import path from "node:path";
import { pathToFileURL } from "node:url";

const REQUEST = 1;
const LOADED = 0;
const ANSWER = 1;
const EXCEPTION = 2;
const MAX_PAYLOAD = 6 << 20;
const MAX_MESSAGE = 8 << 10; // letters
const MAX_TRACE = 64 << 10;
const JSON_TYPE = "application/json";
const SUFFIXES = [".mjs", ".cjs", ".js"];

/** The function cannot be loaded; the message says why. */
class LoadError extends Error {}

/** Bytes of the channel, as many as are asked for. */
class Reader {
  #source;
  #held = [];
  #size = 0;

  constructor(stream) {
    this.#source = stream[Symbol.asyncIterator]();
  }

  /** The next bytes; null at the channel's end. */
  async take(size) {
    while (this.#size < size) {
      const { value, done } = await this.#source.next();
      if (done) return null;
      this.#held.push(value);
      this.#size += value.length;
    }
    const all = this.#held.length === 1 ? this.#held[0] : Buffer.concat(this.#held);
    this.#held = size < all.length ? [all.subarray(size)] : [];
    this.#size -= size;
    return all.subarray(0, size);
  }
}

async function serve(handler, channel) {
  const reader = new Reader(channel);
  send(channel, LOADED, 0, 0, "", Buffer.alloc(0));
  for (;;) {
    const header = await reader.take(7);
    if (header === null) return;
    const [kind, id] = [header[0], header.readUInt32LE(1)];
    const rest = await reader.take(header.readUInt16LE(5) + 4);
    const payload = await reader.take(rest.readUInt32LE(rest.length - 4));
    if (kind !== REQUEST) continue; // resumed: what is random comes from the kernel
    const began = process.hrtime.bigint();
    const [outcome, type, bytes] = await call(handler, rest.toString("latin1", 0, rest.length - 4), payload);
    const took = (process.hrtime.bigint() - began) / 1000n;
    await flushed(process.stdout);
    await flushed(process.stderr);
    send(channel, outcome, id, took, type, bytes);
  }
}

function send(channel, kind, id, took, type, payload) {
  const head = Buffer.alloc(15 + type.length + 4);
  head[0] = kind;
  head.writeUInt32LE(id, 1);
  head.writeBigUInt64LE(BigInt(took), 5);
  head.writeUInt16LE(type.length, 13);
  head.write(type, 15, "latin1");
  head.writeUInt32LE(payload.length, 15 + type.length);
  channel.cork();
  channel.write(head);
  channel.write(payload);
  channel.uncork();
}

/** What was written belongs to the request. */
function flushed(stream) {
  return stream.writableLength ? new Promise((resolve) => void stream.write("", resolve)) : undefined;
}

async function call(handler, type, payload) {
  try {
    return encoded(await handler(decoded(type, payload)));
  } catch (error) {
    return [EXCEPTION, JSON_TYPE, described(error)];
  }
}

/** What a handler gets: an object for JSON, text for text/*, else the bytes; without a type an object if they are JSON. */
function decoded(type, payload) {
  const [name, ...parameters] = type.toLowerCase().split(";").map((part) => part.trim());
  const isJson = name === JSON_TYPE || name.endsWith("+json");
  if (!payload.length && (isJson || !name)) return null;
  if (isJson) {
    try {
      return parsed(payload);
    } catch (error) {
      throw new SyntaxError(`the payload is not JSON: ${error.message}`);
    }
  }
  if (name.startsWith("text/")) {
    const found = parameters.find((parameter) => parameter.startsWith("charset="));
    const charset = found ? found.slice(8).replace(/^["']|["']$/g, "") : "utf-8";
    try {
      return new TextDecoder(charset, { fatal: true }).decode(payload);
    } catch (error) {
      throw new TypeError(`the payload is not text in ${charset.slice(0, 80)}: ${error.message}`);
    }
  }
  if (!name) {
    try {
      return parsed(payload);
    } catch {
      // bytes, then
    }
  }
  return Buffer.from(payload);
}

function parsed(payload) {
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
}

/** What is sent for a handler's answer: kind, content type, payload. */
function encoded(answer) {
  let type = JSON_TYPE;
  let payload;
  if (ArrayBuffer.isView(answer) || answer instanceof ArrayBuffer) {
    type = "application/octet-stream";
    payload = ArrayBuffer.isView(answer) ? Buffer.from(answer.buffer, answer.byteOffset, answer.byteLength) : Buffer.from(answer);
  } else if (typeof answer === "string") {
    type = "text/plain; charset=utf-8";
    payload = Buffer.from(answer);
  } else {
    let text;
    try {
      text = JSON.stringify(answer === undefined ? null : answer);
    } catch (error) {
      throw new TypeError(`the answer cannot be written as JSON: ${error.message}`);
    }
    if (text === undefined) throw new TypeError(`the answer cannot be written as JSON: it is a ${typeof answer}`);
    payload = Buffer.from(text);
  }
  if (payload.length > MAX_PAYLOAD) {
    throw new RangeError(`the answer has ${payload.length} bytes; at most ${MAX_PAYLOAD} can be sent`);
  }
  return [ANSWER, type, payload];
}

/** An exception as JSON: its class, its message and its trace, without what is ours. */
function described(error) {
  let fields = { error: "Error", message: "the exception cannot be described", trace: "" };
  try {
    const isError = error instanceof Error;
    const lines = isError ? String(error.stack).split("\n").filter((line) => !line.includes(import.meta.url)) : [];
    fields = {
      error: String(isError ? error.constructor.name : typeof error),
      message: String(isError ? error.message : error).slice(0, MAX_MESSAGE),
      trace: lines.join("\n").slice(0, MAX_TRACE),
    };
  } catch {
    // one that does not want to be shown
  }
  return Buffer.from(JSON.stringify(fields));
}

/** Let what is random come from the kernel: a clone of a snapshot has the same state of V8 and OpenSSL as all others. */
function askTheKernel() {
  const source = fs.openSync("/dev/urandom");
  const renewed = (view) => {
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    for (let at = 0; at < bytes.length; ) at += fs.readSync(source, bytes, at, bytes.length - at);
    return view;
  };
  const word = new BigUint64Array(1);
  Math.random = () => Number(renewed(word)[0] >> 11n) / 2 ** 53;
  // Theirs say what is wrong with the arguments; the bytes are the kernel's.
  const { randomBytes, webcrypto } = crypto;
  const web = Object.getPrototypeOf(webcrypto);
  const getRandomValues = web.getRandomValues;
  crypto.randomBytes = (size, then) =>
    then === undefined
      ? renewed(randomBytes(size))
      : randomBytes(size, (error, bytes) => then(error, error ? bytes : renewed(bytes)));
  web.getRandomValues = (view) => renewed(getRandomValues.call(webcrypto, view));
  crypto.randomUUID = web.randomUUID = () => {
    const bytes = renewed(Buffer.alloc(16));
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  };
  syncBuiltinESMExports();
}

async function load(entry) {
  const [, module, name] = /^(.+)\.([^.]+)$/.exec(entry) ?? [];
  if (!module) throw new LoadError(`the entry is ${entry}; it must be MODULE.NAME, such as handler.handle`);
  const base = path.join(process.cwd(), ...module.split("."));
  const file = SUFFIXES.map((suffix) => base + suffix).find((candidate) => fs.existsSync(candidate));
  if (!file) {
    const names = fs.readdirSync(".").filter((each) => !each.startsWith("."));
    throw new LoadError(`the entry is ${entry}, and the function has no module ${module}; its files are ${names.slice(0, 20).join(", ")}`);
  }
  const found = await import(pathToFileURL(file).href);
  const handler = found[name] ?? found.default?.[name];
  if (typeof handler === "function") return handler;
  throw new LoadError(`the entry is ${entry}, and the module ${module} exports no function ${name}`);
}

askTheKernel();
let handler;
try {
  handler = await load(process.argv[2] ?? "");
} catch (error) {
  console.error(`the function cannot be loaded: ${error instanceof LoadError ? error.message : error?.stack ?? error}`);
  process.exit(1);
}
encoded(decoded(JSON_TYPE, Buffer.from('{"a": [1, 2.5, "b", true, null]}'))); // so that no guest has it to do for the first time
globalThis.gc?.(); // what is no longer used would be part of the snapshot
await serve(handler, new net.Socket({ fd: 3, readable: true, writable: true }));
process.exit();
