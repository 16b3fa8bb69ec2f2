// A reporter for Node's test runner: how each test went, as lines of mayfly/runs/tested.py.
export default async function* report(source) {
  for await (const { type, data } of source) {
    if (type === "test:stdout" || type === "test:stderr") yield data.message;
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details?.type === "suite" && type === "test:pass") continue;
    const error = data.details?.error;
    if (error?.failureType === "subtestsFailed") continue;
    const cause = error?.cause ?? error;
    const skipped = data.skip !== undefined || data.todo !== undefined;
    const reason = skipped ? [data.skip, data.todo].find((word) => typeof word === "string") ?? "" : cause ? String(cause.message ?? cause) : "";
    const outcome = skipped ? "skipped" : type === "test:pass" ? "passed" : error?.failureType === "testTimeoutFailure" ? "timeout" : "failed";
    yield `\x1e${JSON.stringify({ name: data.name, outcome, message: reason, wall_ms: data.details?.duration_ms ?? null })}\n`;
  }
}
