// How each test of Node's test runner went, as lines of mayfly/runs/tested.py. It is loaded before the tests, and is their reporter.
// Tests of Jest's find its words, and modules that are imported without an extension, as Jest does.
import { readFile } from "node:fs/promises";
import Module, { createRequire, register } from "node:module";
import { beforeEach } from "node:test";
import timers from "node:timers";
import { fileURLToPath } from "node:url";
import { format } from "node:util";

const write = process.stdout.write.bind(process.stdout);
const { clearTimeout, setImmediate, setTimeout } = timers; // the real ones
const names = [];
const begun = new Set();
let failed = false;
let told = false;
let tested = false;
let thrown;
const file = process.env.MAYFLY_FILE ?? "file";
const text = await readFile(file, "utf8").catch(() => "");
const named = /(^|[-_.\/])(test|spec)\.[cm]?[jt]sx?$|^main\.[cm]?[jt]sx?$/.test(file); // not one that lies beside tests

// An endless test leaves nobody else a turn: what the reporter has is put out before, and what runs next.
beforeEach(async (test) => {
  begin();
  await new Promise((resolve) => setImmediate(resolve));
  begun.add(test.fullName ?? test.name);
  write(`\x1e${JSON.stringify({ name: test.fullName ?? test.name })}\n`);
});

// What nothing else tells: the file was not loaded, or something went wrong or ended the program outside of its tests.
function tell(message, output = "", outcome = "error") {
  write(`\x1e${JSON.stringify({ name: file, outcome, message, output })}\n`);
  told = true;
}
// What console.assert only prints: a file that has nothing else to say has failed by it.
const { assert } = console;
let refused;
console.assert = (is, ...words) => {
  if (!is) refused ??= words.length ? format(...words) : "console.assert";
  assert.call(console, is, ...words);
};
process.on("uncaughtExceptionMonitor", (error) => {
  thrown = [String(error?.message ?? error), String(error?.stack ?? ""), error?.code === "ERR_ASSERTION" && !seen.tests ? "failed" : "error"];
  if (begun.size === 0) tell(...thrown);
  const [, name] = /^Cannot find (?:module|package) '((?:@[^'/]+\/)?[^'/.:]+)/.exec(thrown[0]) ?? [];
  if (!name || !/MODULE_NOT_FOUND$/.test(error?.code)) return;
  const language = /\.[cm]?tsx?$/.test(file) ? "typescript" : "javascript";
  console.error(`the image has no ${name}; add it: imagegen build ${language} --package '${name}'\n`);
});
process.on("exit", (status) => {
  if (!status && !tested && begun.size === 0) {
    if (!seen.tests && /\bassert\b/.test(text)) tell(refused ?? "", "", refused === undefined ? "passed" : "failed");
    else if (named) tell((refused = "there are no tests in this file"));
    if (refused !== undefined) process.exitCode = 1;
  }
  if (!status && begun.size) process.exitCode = 1; // a test that ends the program has not passed
  if (!status || told || failed) return;
  if (thrown) tell(...thrown);
  else if (begun.size === 0) tell(`the file ended with status ${status} outside of its tests`);
});

const words = new URL("jest.cjs", import.meta.url);
const jest = ["@jest/globals", "vitest"];
const resolveFilename = Module._resolveFilename;
Module._resolveFilename = (request, ...rest) => (jest.includes(request) ? fileURLToPath(words) : resolveFilename(request, ...rest));
register(
  `data:text/javascript,${encodeURIComponent(`
    export async function resolve(name, context, next) {
      if (${JSON.stringify(jest)}.includes(name)) return { url: ${JSON.stringify(words.href)}, shortCircuit: true };
      try {
        return await next(name, context);
      } catch (error) {
        if (!/^\\.{1,2}\\//.test(name) || !["ERR_MODULE_NOT_FOUND", "ERR_UNSUPPORTED_DIR_IMPORT"].includes(error.code)) throw error;
        for (const more of [".js", ".mjs", ".cjs", ".ts", "/index.js", "/index.ts"]) {
          try {
            return await next(name + more, context);
          } catch {}
        }
        throw error;
      }
    }`)}`,
);
const require = createRequire(import.meta.url);
Object.assign(globalThis, require(fileURLToPath(words)));
const { begin, seen } = require("./expect.cjs");

// Timers and servers that tests leave open do not keep the program.
const patience = 2000 * (Number(process.env.MAYFLY_TIME_FACTOR) || 1);
let open = 0;
let last;
function follow(type) {
  if (type === "test:enqueue") {
    open++;
    clearTimeout(last);
  } else if (["test:pass", "test:fail"].includes(type) && --open === 0) {
    last = setTimeout(() => process.exit(failed ? 1 : 0), patience).unref();
  }
}

export default async function* report(source) {
  for await (const { type, data } of source) {
    if (data.nesting === 0) follow(type);
    if (type === "test:start") names.splice(data.nesting, Infinity, data.name);
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details?.type === "suite") seen.tests = true;
    if (data.details?.type === "suite" && type === "test:pass") continue;
    const error = data.details?.error;
    if (error?.failureType === "subtestsFailed" && data.details?.type === "suite") continue;
    const cause = error?.cause ?? error;
    const skipped = data.skip !== undefined || data.todo !== undefined;
    const reason = skipped ? [data.skip, data.todo].find((word) => typeof word === "string") ?? "" : cause ? String(cause.message ?? cause) : "";
    failed ||= type === "test:fail" && !skipped;
    const outcome = skipped ? "skipped" : type === "test:pass" ? "passed" : error?.failureType === "testTimeoutFailure" ? "timeout" : "failed";
    const name = [...names.slice(0, data.nesting), data.name].join(" > ");
    begun.delete(name);
    tested = true;
    yield `\x1e${JSON.stringify({ name, outcome, message: reason, wall_ms: data.details?.duration_ms ?? null })}\n`;
  }
}
