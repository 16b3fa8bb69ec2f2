// How each test of Node's test runner went, as lines of mayfly/runs/tested.py. It is loaded before the tests, and is their reporter.
import { beforeEach } from "node:test";
import { setImmediate } from "node:timers";

const write = process.stdout.write.bind(process.stdout);
const names = [];

// An endless test leaves nobody else a turn: what the reporter has is put out before, and what runs next.
beforeEach(async (test) => {
  await new Promise((resolve) => setImmediate(resolve));
  write(`\x1e+${test.fullName ?? test.name}\n`);
});

export default async function* report(source) {
  for await (const { type, data } of source) {
    if (type === "test:start") names.splice(data.nesting, Infinity, data.name);
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details?.type === "suite" && type === "test:pass") continue;
    const error = data.details?.error;
    if (error?.failureType === "subtestsFailed" && data.details?.type === "suite") continue;
    const cause = error?.cause ?? error;
    const skipped = data.skip !== undefined || data.todo !== undefined;
    const reason = skipped ? [data.skip, data.todo].find((word) => typeof word === "string") ?? "" : cause ? String(cause.message ?? cause) : "";
    const outcome = skipped ? "skipped" : type === "test:pass" ? "passed" : error?.failureType === "testTimeoutFailure" ? "timeout" : "failed";
    const name = [...names.slice(0, data.nesting), data.name].join(" > ");
    yield `\x1e${JSON.stringify({ name, outcome, message: reason, wall_ms: data.details?.duration_ms ?? null })}\n`;
  }
}
