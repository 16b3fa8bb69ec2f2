/** What the server sends and takes, as in docs/api.md. */

export interface Language {
  language: string;
  version: string;
  compiler: string;
  default: boolean;
  extensions: string[];
  source_file: string;
}

export interface Failure {
  code: string;
  message: string;
  hint: string;
}

/** How a step, or a case, ended. */
export interface Ended {
  code?: number | null;
  signal_name?: string | null;
  errno?: number | null;
  limit?: string | null;
  wall_ms?: number;
  cpu_ms?: number;
  peak_memory?: number;
  stdout_truncated?: boolean;
  stderr_truncated?: boolean;
}

export type Verdict = "passed" | "wrong_answer" | "failed" | "signal" | "limit" | "error" | "skipped";

export interface CaseResult extends Ended {
  index: number;
  name?: string | null;
  verdict: Verdict;
  error?: Failure;
  stdout?: string;
  stdout_base64?: string;
  stderr?: string;
  stderr_base64?: string;
}

export interface Result {
  id: string;
  status: "ok" | "failed" | "signal" | "limit" | "build_failed" | "error" | null;
  exit_status: number | null;
  steps: (Ended & { step: string })[];
  error: Failure | null;
  phases: Record<string, number>;
  start?: string | null;
  cases?: { parallel: number; passed: number; results: CaseResult[] } | null;
  files?: Record<string, { base64: string }>;
  files_error?: Failure;
}

export type RunEvent =
  | { event: "stage"; step: string }
  | { event: "stdout" | "stderr"; data?: string; base64?: string }
  | ({ event: "exit"; step: string } & Ended)
  | ({ event: "case" } & CaseResult)
  | { event: "error"; error: Failure }
  | { event: "done"; status: string; exit_status: number; result?: Result };

export type Compare = "exact" | "trimmed" | "tokens";

export interface Case {
  stdin: string;
  expected: string | null;
}

export type Mode = "stdin" | "cases" | "terminal";

/** All that a share link holds. */
export interface Draft {
  language: string;
  files: { name: string; text: string }[];
  mode: Mode;
  args: string;
  stdin: string;
  /** Patterns of files that are wanted back, with blanks between them. */
  collect: string;
  cases: Case[];
  compare: Compare;
  stopEarly: boolean;
}
