/** Results in words. */

import { count } from "./dom.ts";
import type { Ended, Result, Verdict } from "./types.ts";

export const VERDICTS: Record<Verdict, string> = {
  passed: "✓ passed",
  wrong_answer: "✗ wrong answer",
  failed: "✗ exited with an error",
  signal: "✗ ended by a signal",
  limit: "✗ over a limit",
  error: "✗ not run",
  skipped: "– skipped",
};

const LIMITS: Record<string, string> = {
  wall: "ran out of time",
  cpu: "used up its processor time",
  memory: "used up its memory",
  processes: "started too many processes",
  file_size: "wrote too large a file",
};

/** "0.52 s", "13 ms". */
export function seconds(value: number): string {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`;
}

/** "12 MiB", "300 KiB". */
export function size(bytes: number): string {
  return bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(bytes < 10 << 20 ? 1 : 0)} MiB`;
}

/** How a step or a case ended: "exited with 1, 13 ms, 2.1 MiB". */
export function describeEnd(ended: Ended): string {
  const facts = [how(ended)];
  if (ended.wall_ms !== undefined) facts.push(seconds(ended.wall_ms / 1000));
  if (ended.peak_memory) facts.push(size(ended.peak_memory));
  if (ended.stdout_truncated || ended.stderr_truncated) facts.push("output cut at its limit");
  return facts.join(", ");
}

function how(ended: Ended): string {
  if (ended.limit) return LIMITS[ended.limit] ?? `over the limit ${ended.limit}`;
  if (ended.signal_name) return `ended by ${ended.signal_name}`;
  if (ended.errno) return `could not be started (errno ${ended.errno})`;
  return `exited with ${ended.code ?? 0}`;
}

/** A whole result: "Build exited with 1, 0.31 s", "3 of 5 cases passed". */
export function describe(result: Result): string {
  if (result.error) return result.error.code === "run_ended" ? "Stopped" : `${sentence(result.error.message)}. ${sentence(result.error.hint)}`;
  if (result.status === "build_failed") return `Build failed: ${describeEnd(result.steps.at(-1) ?? {})}`;
  if (result.cases) {
    const { passed, results, parallel } = result.cases;
    return `${passed} of ${count(results.length, "case")} passed${parallel > 1 ? `, ${parallel} at a time` : ""}`;
  }
  const last = result.steps.at(-1);
  return last ? sentence(describeEnd(last)) : "Done";
}

export const sentence = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
