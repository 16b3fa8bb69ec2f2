/** The page: its parts, and what happens between them. */

import "./csp.ts";
import "./style.css";
import { Api, type Features, ServerError } from "./api.ts";
import { Cases } from "./cases.ts";
import { Collected } from "./collected.ts";
import * as dialog from "./dialog.ts";
import { byId, count, make, unseen } from "./dom.ts";
import { Editor } from "./editor.ts";
import { Files } from "./files.ts";
import { Output } from "./output.ts";
import { Phases } from "./phases.ts";
import { type Diagnostic, diagnose } from "./places.ts";
import { Run } from "./run.ts";
import { sample } from "./samples.ts";
import { check, pack, unpack } from "./share.ts";
import { listen, showShortcuts, takes } from "./shortcuts.ts";
import { mark, moveByKeys } from "./tabs.ts";
import type { Terminal } from "./terminal.ts";
import { followTheme } from "./theme.ts";
import type { Draft, Language, Mode, Result } from "./types.ts";
import { describe, sentence } from "./words.ts";

const DRAFT = "mayfly-draft";
const MODES: Mode[] = ["stdin", "cases", "terminal"];

/** What stands in the place of a run's output if it had none. */
const NOTHING: Record<Mode, string> = {
  stdin: "The program printed nothing.",
  cases: "The table has what each case printed.",
  terminal: "",
};

const api = new Api(askForKey);
const editor = new Editor(byId("editor"), changed);
const files = new Files(editor);
const cases = new Cases(changed);
const collected = new Collected();
const phases = new Phases();
const output = new Output((place) => editor.jump(place));
const language = byId<HTMLSelectElement>("language");
const stdin = byId<HTMLTextAreaElement>("stdin");
const args = byId<HTMLInputElement>("args");
const collect = byId<HTMLInputElement>("collect");
const compare = byId<HTMLSelectElement>("compare");
const stopEarly = byId<HTMLInputElement>("stop-early");
const runButton = byId<HTMLButtonElement>("run");
const stopButton = byId<HTMLButtonElement>("stop");
const status = byId("status");
const firstError = byId<HTMLButtonElement>("first-error");

let languages: Language[] = [];
let features: Features = { cases: false, collect: false, terminal: false };
let mode: Mode = "stdin";
let running: Run | null = null;
let terminal: Terminal | null = null;
let first: Diagnostic | null = null;
let chosen = "";
const programs = new Map<string, Draft["files"]>();
/** What was last edited in each language. */

function draft(): Draft {
  return {
    language: language.value,
    files: editor.files,
    mode,
    args: args.value,
    stdin: stdin.value,
    collect: features.collect ? collect.value : "",
    cases: cases.cases,
    compare: compare.value as Draft["compare"],
    stopEarly: stopEarly.checked,
  };
}

let saving = 0;

/** The user has edited: keep it for when the page is loaded again. */
function changed(): void {
  clearTimeout(saving);
  saving = setTimeout(save, 300);
}

function save(): void {
  if (!languages.length) return;
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(draft()));
  } catch {
    // too large for the browser: it is lost with the page
  }
}

function load(given: Draft): void {
  const [name = "", version] = given.language.split("@");
  const same = languages.filter((one) => one.language === name);
  const found = same.find((one) => one.version === version) ?? same.find((one) => one.default) ?? same[0];
  if (found) language.value = chosen = valueOf(found);
  else say(`This server does not have ${given.language}`, true);
  editor.load(given.files);
  files.draw();
  args.value = given.args;
  stdin.value = given.stdin;
  collect.value = given.collect;
  cases.load(given.cases);
  compare.value = given.compare;
  stopEarly.checked = given.stopEarly;
  choose(byId(`mode-${given.mode}`).hidden ? "stdin" : given.mode);
}

/** The draft that a new page begins with. */
function blank(): Draft {
  const name = chosen.split("@")[0]!;
  return check({ language: chosen, files: begin(name) });
}

function begin(name: string): Draft["files"] {
  const source = languages.find((one) => one.language === name)?.source_file ?? "main";
  return programs.get(name) ?? [{ name: source, text: sample(name) }];
}

const valueOf = (one: Language) => `${one.language}@${one.version}`;

function choose(next: Mode): void {
  mode = next;
  for (const one of MODES) {
    mark(byId(`mode-${one}`), one === mode);
    byId(`panel-${one}`).hidden = one !== mode;
  }
  document.querySelector("main")!.dataset.mode = mode;
  const inTerminal = mode === "terminal";
  byId("terminal").hidden = !inTerminal;
  for (const id of ["output", "streams", "copy"]) byId(id).hidden = inTerminal;
  changed();
}

/** Say how it stands; screen readers give it, too. */
function say(text: string, wrong = false): void {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function sayError(error: unknown): void {
  if (error instanceof ServerError) say(`${sentence(error.message)}${error.hint ? `. ${sentence(error.hint)}` : ""}`, true);
  else say(String(error), true);
}

async function run(): Promise<void> {
  if (running || runButton.disabled) return;
  const given = draft();
  const names = given.files.map((file) => file.name);
  const decoder = new TextDecoder();
  let stage = "";
  let built = "";
  const current = new Run(api, {
    stage(step) {
      stage = step;
      phases.enter(step);
      say(step === "build" ? "Building…" : "Running…");
    },
    output(stream, data) {
      if (stage === "build") built += decoder.decode(data, { stream: true });
      if (given.mode === "terminal") terminal!.write(data);
      else output.write(stream, data);
    },
    case: (result) => cases.show(result),
  });
  running = current;
  runButton.disabled = true;
  stopButton.disabled = false;
  say("Starting…");
  mend([]);
  output.clear(names);
  collected.clear();
  phases.begin();
  if (given.mode === "cases") cases.begin();
  let result: Result | null = null;
  try {
    if (given.mode === "terminal") {
      await openTerminal();
      result = await current.attend(given, terminal!);
    } else {
      result = await current.follow(given);
    }
    const found = diagnose(built, new Set(names));
    for (const one of result.cases?.results ?? []) cases.show(one);
    mend(found);
    collected.show(result);
    const errors = found.filter((one) => one.severity === "error").length;
    say(`${describe(result)}${errors ? `: ${count(errors, "error")}` : ""}`, result.status !== "ok");
  } catch (error) {
    if (current.isStopped) say("Stopped");
    else sayError(error);
  } finally {
    running = null;
    phases.end(result?.phases ?? null);
    output.end(NOTHING[given.mode]);
    cases.end();
    const lost = stopButton === document.activeElement;
    runButton.disabled = false;
    stopButton.disabled = true;
    if (lost) runButton.focus(); // a disabled button cannot keep it
  }
}

/** Mark what the compiler says, in the editor and as a way to the first error. */
function mend(found: Diagnostic[]): void {
  editor.diagnose(found);
  first = found.find((one) => one.severity === "error") ?? null;
  firstError.hidden = !first;
  firstError.replaceChildren(...(first ? [unseen("Go to "), `${first.file}:${first.line}: ${first.message}`] : []));
}

async function stop(): Promise<void> {
  if (!running) return;
  say("Stopping…");
  await running.stop().catch(sayError);
}

async function openTerminal(): Promise<void> {
  const loaded = await import("./terminal.ts");
  terminal ??= new loaded.Terminal(byId("terminal"), takes);
  terminal.clear();
  terminal.focus();
}

async function share(): Promise<void> {
  const url = new URL(location.href);
  url.hash = `s=${await pack(draft())}`;
  const field = make("input", { readOnly: true, value: url.href, id: "share-link" });
  const copied = async () => {
    field.select();
    await navigator.clipboard.writeText(field.value).catch(() => document.execCommand("copy"));
    say("The link is copied");
  };
  const note = "The link holds the program and its input; nothing of it is stored on a server.";
  await dialog.show({
    title: "Share this program",
    body: [make("p", {}, note), make("label", { for: "share-link" }, "Link"), field],
    action: "Copy the link",
    act: copied,
  });
}

async function askForKey(refused: boolean): Promise<string> {
  const field = make("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const why = refused ? "The server does not know this key." : "This server wants a key.";
  const hint = `${why} Its operator makes one with "mayfly key create". It is kept until this tab is closed.`;
  const body = [make("p", {}, hint), make("label", { for: "key" }, "Key"), field];
  const done = await dialog.show({ title: "Key", body, action: "Use it" });
  return done ? field.value.trim() : "";
}

/** What the address's fragment holds: a key, which leaves the address at once, and a shared draft. */
async function readFragment(): Promise<Draft | null> {
  const fragment = new URLSearchParams(location.hash.slice(1));
  if (!fragment.has("key") && !fragment.has("s")) return null;
  history.replaceState(null, "", location.pathname + location.search);
  if (fragment.get("key")) api.key = fragment.get("key")!;
  const shared = fragment.get("s");
  if (!shared) return null;
  try {
    return await unpack(shared);
  } catch {
    throw new ServerError({ code: "bad_link", message: "the link cannot be read", hint: "it may have been cut; copy all of it" });
  }
}

function stored(): Draft | null {
  try {
    return check(JSON.parse(sessionStorage.getItem(DRAFT) ?? ""));
  } catch {
    return null;
  }
}

function connect(): void {
  language.addEventListener("change", () => {
    const [before, now] = [chosen, language.value].map((value) => value.split("@")[0]!);
    programs.set(before!, editor.files);
    chosen = language.value;
    if (before !== now) {
      editor.load(begin(now!));
      files.draw();
    }
    changed();
  });
  moveByKeys(byId("modes"));
  for (const one of MODES) byId(`mode-${one}`).addEventListener("click", () => choose(one));
  for (const element of [stdin, args, collect, compare, stopEarly]) element.addEventListener("input", changed);
  addEventListener("pagehide", save);
  runButton.addEventListener("click", () => void run());
  stopButton.addEventListener("click", () => void stop());
  byId("share").addEventListener("click", () => void share());
  byId("help").addEventListener("click", () => void showShortcuts());
  byId("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(output.text);
    say("The output is copied");
  });
  firstError.addEventListener("click", () => first && editor.jump(first));
  addEventListener("hashchange", () => void readFragment().then((shared) => shared && load(shared), sayError));
  listen({ run: () => void run(), stop: () => void stop(), share: () => void share(), help: () => void showShortcuts() });
  followTheme(() => terminal?.recolour());
}

async function start(): Promise<void> {
  connect();
  let shared: Draft | null = null;
  let trouble: unknown = null;
  try {
    shared = await readFragment();
  } catch (error) {
    trouble = error;
  }
  languages = await api.languages();
  features = await api.features();
  byId("mode-cases").hidden = !features.cases;
  byId("mode-terminal").hidden = !features.terminal;
  byId("wanted").hidden = !features.collect;
  language.replaceChildren(...languages.map((one) => make("option", { value: valueOf(one) }, `${sentence(one.language)} ${one.version}`)));
  const usual = languages.find((one) => one.default) ?? languages[0];
  if (!usual) return say("This server has no language yet: build an image with mayfly image build rust", true);
  chosen = language.value = valueOf(usual);
  say("Ready");
  load(shared ?? stored() ?? blank());
  if (trouble) sayError(trouble);
  runButton.disabled = false;
}

start().catch(sayError);
