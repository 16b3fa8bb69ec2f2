// The words of Jest for node:test: describe, test, expect and the commonest of jest, for tests that import @jest/globals or vitest, or
// take them, or Mocha's, for granted. What is not here says so by name.
"use strict";
const node = require("node:test");
const { clearTimeout, setImmediate, setTimeout } = require("node:timers"); // the real ones
const { inspect, format } = require("node:util");
const { expect, finish, seen } = require("./expect.cjs");

// --- a file's tests: declared first, then given to node:test, since `only` of a late one leaves out those before ---

const root = { children: [], hooks: [] };
let open = root;
let registers = false;
const slow = Number(process.env.MAYFLY_TIME_FACTOR) || 1; // how much longer all takes on this host
let patience = 5000; // ms for a test or a hook, as Jest has it

// What is no time is as if nobody had said it, and the longest is that of Node's timers.
const allowed = (ms) => Math.min((ms > 0 ? Number(ms) : 5000) * slow, 2 ** 31 - 1);

function declare(entry) {
  seen.tests = true;
  open.children.push(Object.assign(entry, { parent: open }));
  if (registers) return;
  registers = true;
  queueMicrotask(() => {
    registers = false;
    register(root, root.children.some(focused));
    root.children = [];
    root.hooks = [];
  });
}

// The time of a test is its own, or that of what it is in.
const timeOf = (entry) => (entry ? entry.timeout ?? timeOf(entry.parent) : patience);

const isTest = (entry) => entry.children === undefined;
const focused = (entry) => (isTest(entry) ? modeOf(entry) === "only" : entry.children.some(focused));

// Tests have the mode of what they are in, but not `only` if one beside them has it itself.
function modeOf(entry) {
  if (entry.mode || !entry.parent) return entry.mode;
  const taken = modeOf(entry.parent);
  return taken === "only" && entry.parent.children.some((beside) => isTest(beside) && beside.mode === "only") ? undefined : taken;
}

function register(group, only) {
  const left = (entry) =>
    isTest(entry) ? ["skip", "todo"].includes(modeOf(entry)) || (only && modeOf(entry) !== "only") : entry.children.every(left);
  if (group === root || !left(group))
    for (const [add, body, ms = patience] of group.hooks) add(kept(body, allowed(ms)), { timeout: allowed(ms) });
  for (const entry of group.children) {
    if (!isTest(entry)) node.describe(entry.name, () => register(entry, only));
    else if (entry.mode === "todo") node.test(entry.name, { todo: true });
    else {
      const { body } = entry;
      const timeout = allowed(timeOf(entry));
      node.test(entry.name, { skip: left(entry), timeout }, left(entry) ? undefined : kept(body, timeout));
    }
  }
}

// Node's own timer of a test does not keep the process when nothing else does: with this one the tests behind it have their turn.
const kept =
  (body, ms) =>
  async (...words) => {
    const timer = setTimeout(() => {}, Math.min(ms + 100, 2 ** 31 - 1));
    try {
      return await body(...words);
    } finally {
      clearTimeout(timer);
    }
  };

// What is `this` for Mocha's callbacks: their times are asked for before they run, or not at all.
const context = (timeout = () => context()) => ({ timeout, retries: () => context(), slow: () => context() });
const shared = context();

// A callback that takes `done` ends when that is called.
const awaited =
  (body, count = 0) =>
  (...words) =>
    body.length > count
      ? new Promise((resolve, reject) => {
          const done = (error) => (error ? reject(error instanceof Error ? error : new Error(inspect(error))) : resolve());
          body.call(shared, ...words.slice(0, count), done);
        })
      : body.call(shared, ...words.slice(0, count));

function counted(body, fails) {
  return async () => {
    try {
      await body();
      finish();
    } catch (error) {
      if (fails) return;
      throw error;
    }
    if (fails) throw new Error("this test is expected to fail, but it passed");
  };
}

const named = (name) => (typeof name === "function" ? name.name : String(name));
const callback = (name, body) => {
  if (typeof body !== "function") throw new TypeError(`${named(name)}: it takes a function, or test.todo`);
  return body;
};

function testing(mode, fails = false) {
  const declared = (name, body, more, words = []) => {
    if (typeof body !== "function" && typeof more === "function") [body, more] = [more, body]; // as Vitest has it
    const run = mode === "skip" ? undefined : counted(() => awaited(callback(name, body), words.length)(...words), fails);
    declare({ name: named(name), mode, body: run, timeout: typeof more === "number" ? more : more?.timeout });
  };
  return withEach((name, body, more) => declared(name, body, more), declared);
}

function describing(mode) {
  const declared = (name, body, _, words = []) => {
    const group = { name: named(name), mode, children: [], hooks: [] };
    declare(group);
    const before = open;
    open = group;
    try {
      callback(name, body).call(context((ms) => ((group.timeout = ms), context())), ...words);
    } finally {
      open = before;
    }
  };
  return withEach((name, body) => declared(name, body), declared);
}

function withEach(declared, withWords) {
  declared.each =
    (table, ...values) =>
    (name, body, more) => {
      const listed = rows(table, values);
      listed.forEach((row, index) => withWords(title(name, row, index, listed), body, more, Array.isArray(row) ? row : [row]));
    };
  return declared;
}

const test = Object.assign(testing(), {
  only: testing("only"),
  skip: testing("skip"),
  failing: testing(undefined, true),
  concurrent: testing(),
  fails: testing(undefined, true),
  sequential: testing(),
  todo: (name) => declare({ name: named(name), mode: "todo" }),
});
const describe = Object.assign(describing(), {
  only: describing("only"),
  skip: describing("skip"),
  sequential: describing(),
  todo: (name) => test.todo(name),
});
for (const word of [test, describe]) {
  word.skipIf = (is) => (is ? word.skip : word);
  word.runIf = (is) => (is ? word : word.skip);
}
const it = test;
const xtest = test.skip,
  xit = test.skip,
  xdescribe = describe.skip;
const fit = test.only,
  fdescribe = describe.only;
const hook = (add) => (body, timeout) => void open.hooks.push([add, awaited(body), timeout]);
const beforeEach = hook(node.beforeEach),
  afterEach = hook(node.afterEach);
const beforeAll = hook(node.before),
  afterAll = hook(node.after);
const mochas = {
  before: beforeAll,
  after: afterAll,
  context: describe,
  specify: it,
  xcontext: xdescribe,
  xspecify: xtest,
};

// --- test.each ---

// A table in a template has its keys in the first line.
function rows(table, values) {
  if (!table.raw) return table;
  const keys = table[0].split("|").map((key) => key.trim());
  return Array.from({ length: values.length / keys.length }, (_, at) =>
    Object.fromEntries(keys.map((key, place) => [key, values[at * keys.length + place]])),
  );
}

function pretty(value, deep = true) {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "function") return `[Function ${value.name || "anonymous"}]`;
  if (value === null || typeof value !== "object" || value instanceof Error || value instanceof RegExp) return inspect(value);
  if (value instanceof Date) return value.toISOString();
  const name = value.constructor?.name ?? "Object";
  if (!deep) return `[${name}]`;
  if (Array.isArray(value)) return `[${value.map((one) => pretty(one, false)).join(", ")}]`;
  if (value instanceof Set || value instanceof Map || ArrayBuffer.isView(value)) return inspect(value);
  const fields = Object.entries(value)
    .map(([key, one]) => `"${key}": ${pretty(one, false)}`)
    .join(", ");
  return `${name === "Object" ? "" : `${name} `}{${fields}}`;
}

const PLACES = /%[sdifjoOp#$]/;

function title(name, row, index, all) {
  let text = named(name)
    .replace("%#", index)
    .replace("%$", index + 1);
  const objects = all.every((one) => one !== null && typeof one === "object" && !Array.isArray(one));
  if (objects && !PLACES.test(text)) {
    const shown = (path) => path.split(".").reduce((at, key) => at?.[key], row);
    const known = (path) => Object.hasOwn(row, path.split(".")[0]);
    const said = (value) => (Object(value) === value ? pretty(value) : String(value));
    return text.replace(/\$(\w+(?:\.\w+)*)/g, (word, path) => (known(path) ? said(shown(path)) : word)).replace("$#", index);
  }
  for (const value of Array.isArray(row) ? row : [row]) {
    const [place] = PLACES.exec(text) ?? [];
    if (!place) break;
    const kept = typeof value === "string" ? value.replaceAll("%", "\0") : value; // what was put in is no place itself
    text = place === "%p" ? text.replace("%p", () => pretty(kept)) : format(text, kept);
  }
  return text.replaceAll("\0", "%");
}

// --- functions that remember their calls ---

function fn(body) {
  const once = [];
  const mock = {
    calls: [],
    results: [],
    instances: [],
    contexts: [],
    get lastCall() {
      return this.calls.at(-1);
    },
  };
  function called(...words) {
    const result = { type: "incomplete", value: undefined };
    mock.calls.push(words);
    mock.instances.push(this);
    mock.contexts.push(this);
    mock.results.push(result);
    try {
      const act = once.shift() ?? body;
      const value = new.target && act ? Reflect.construct(act, words, new.target) : act?.apply(this, words);
      Object.assign(result, { type: "return", value });
      return value;
    } catch (error) {
      Object.assign(result, { type: "throw", value: error });
      throw error;
    }
  }
  const set = (next) => ((body = next), called);
  const then = (next) => (once.push(next), called);
  Object.assign(called, {
    mock,
    _isMockFunction: true,
    mockImplementation: set,
    mockImplementationOnce: then,
    mockReturnThis: () =>
      set(function () {
        return this;
      }),
    mockName: (name) => ((called.mocked = name), called),
    getMockName: () => called.mocked ?? "jest.fn()",
    getMockImplementation: () => body,
    mockReturnValue: (value) => set(() => value),
    mockReturnValueOnce: (value) => then(() => value),
    mockResolvedValue: (value) => set(async () => value),
    mockResolvedValueOnce: (value) => then(async () => value),
    mockRejectedValue: (error) =>
      set(async () => {
        throw error;
      }),
    mockRejectedValueOnce: (error) =>
      then(async () => {
        throw error;
      }),
    mockClear: () => (["calls", "results", "instances", "contexts"].forEach((list) => (mock[list] = [])), called),
    mockReset: () => ((once.length = 0), set(undefined).mockClear()),
    mockRestore: () => called.mockReset(),
  });
  made.add(called);
  return called;
}

const made = new Set();
const spies = new Set();
function spyOn(object, name, access) {
  if (access) throw new Error(`jest.spyOn(…, ${JSON.stringify(access)}) is not there: of properties only functions`);
  if (typeof object?.[name] !== "function") throw new Error(`jest.spyOn: there is no function ${String(name)}`);
  if (object[name].mock) return object[name];
  const original = object[name];
  const spy = fn(original);
  object[name] = spy;
  spy.mockRestore = () => ((object[name] = original), spies.delete(spy));
  spies.add(spy);
  return spy;
}

// --- time that stands still: Node's own ---

const TIMERS = ["setTimeout", "setInterval", "setImmediate", "Date"];
const timers = {
  useFakeTimers: ({ now = Date.now() } = {}) => (node.mock.timers.reset(), node.mock.timers.enable({ apis: TIMERS, now: Number(now) }), jest),
  useRealTimers: () => (node.mock.timers.reset(), jest),
  advanceTimersByTime: (ms) => (node.mock.timers.tick(ms), jest),
  advanceTimersByTimeAsync: async (ms) => {
    await null;
    node.mock.timers.tick(ms);
    await new Promise(setImmediate);
  },
  runAllTimers: () => (node.mock.timers.runAll(), jest),
  runOnlyPendingTimers: () => (node.mock.timers.runAll(), jest),
  setSystemTime: (now = 0) => (node.mock.timers.setTime(Number(now)), jest),
};

const lacking = (what) => ({
  get(there, name) {
    if (name in there || typeof name === "symbol" || name === "then") return there[name];
    throw new Error(`${what}.${name} is not there: these tests are node:test's, with the commonest words of Jest`);
  },
});
const all = (set, act) => () => void [...set].forEach(act);
const jest = new Proxy(
  {
    fn,
    spyOn,
    ...timers,
    setTimeout: (ms) => ((patience = ms), jest),
    isMockFunction: (value) => Boolean(value?._isMockFunction),
    mocked: (value) => value,
    clearAllMocks: all(made, (one) => one.mockClear()),
    resetAllMocks: all(made, (one) => one.mockReset()),
    restoreAllMocks: all(spies, (spy) => spy.mockRestore()),
  },
  lacking("jest"),
);
const vi = jest;

module.exports = {
  ...mochas,
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  fdescribe,
  fit,
  it,
  jest,
  test,
  vi,
  xdescribe,
  xit,
  xtest,
};
