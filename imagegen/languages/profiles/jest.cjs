// The words of Jest for node:test: describe, test, expect and the commonest of jest, for tests that import @jest/globals or vitest, or
// take them for granted. What is not here says so by name.
"use strict";
const node = require("node:test");
const { AssertionError } = require("node:assert");
const { inspect, format } = require("node:util");

// --- tests ---

// A callback that takes `done` ends when that is called.
const awaited = (body, count = 0) =>
  body &&
  ((...words) =>
    body.length > count
      ? new Promise((resolve, reject) => {
          const done = (error) => (error ? reject(error instanceof Error ? error : new Error(inspect(error))) : resolve());
          body(...words.slice(0, count), done);
        })
      : body(...words.slice(0, count)));

const named = (name) => (typeof name === "function" ? name.name : String(name));

function title(name, row, index) {
  if (!Array.isArray(row)) return named(name).replace(/\$#/g, index).replace(/\$([\w.]+)/g, (_, path) => inspect(path.split(".").reduce((at, key) => at?.[key], row)));
  const rest = [...row];
  const text = named(name).replace(/%[sdifjopcO#%]/g, (word) => {
    if (word === "%#") return index;
    if (word === "%%" || rest.length === 0) return word;
    return word === "%p" ? inspect(rest.shift()) : format(word, rest.shift());
  });
  return text;
}

function rows(table, values) {
  if (!table.raw) return table;
  const keys = table[0].split("|").map((key) => key.trim());
  return Array.from({ length: values.length / keys.length }, (_, at) => Object.fromEntries(keys.map((key, place) => [key, values[at * keys.length + place]])));
}

function withEach(declare) {
  declare.each = (table, ...values) => (name, body, ...rest) =>
    rows(table, values).forEach((row, index) => {
      const words = Array.isArray(row) ? row : [row];
      declare(title(name, row, index), body && (() => awaited(body, words.length)(...words)), ...rest);
    });
  return declare;
}

function declaring(declare, wrap) {
  const timed = (rest) => ({ timeout: typeof rest[0] === "number" ? rest[0] : rest[0]?.timeout });
  const plain = (name, body, ...rest) => void declare(named(name), timed(rest), wrap(body));
  const skipped = (name, body) => void declare(named(name), { skip: true }, wrap(body));
  withEach(plain).only = withEach((name, body, ...rest) => plain(name, body, ...rest));
  plain.skip = withEach(skipped);
  plain.todo = (name) => void declare(named(name), { todo: true });
  return plain;
}

const test = declaring(node.test, (body) => awaited(body));
const describe = declaring(node.describe, (body) => body && (() => void body()));
const it = test;
const xtest = test.skip, xit = test.skip, xdescribe = describe.skip;
const fit = test.only, fdescribe = describe.only;
const hook = (register) => (body) => register(awaited(body));
const beforeEach = hook(node.beforeEach), afterEach = hook(node.afterEach);
const beforeAll = hook(node.before), afterAll = hook(node.after);

// --- equality ---

class Asymmetric {
  constructor(words, matches) {
    this.matches = matches;
    this[inspect.custom] = () => words;
  }
}

const tag = (value) => Object.prototype.toString.call(value);
const keysOf = (value, strict) => Reflect.ownKeys(value).filter((key) => Object.prototype.propertyIsEnumerable.call(value, key) && (strict || value[key] !== undefined));

function equals(a, b, strict = false, open = []) {
  if (b instanceof Asymmetric) return b.matches(a);
  if (a instanceof Asymmetric) return a.matches(b);
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null || tag(a) !== tag(b)) return false;
  if (a instanceof Error && b instanceof Error) return a.message === b.message;
  if (["[object Date]", "[object Number]", "[object String]", "[object Boolean]"].includes(tag(a))) return Object.is(a.valueOf(), b.valueOf());
  if (a instanceof RegExp) return String(a) === String(b);
  if (strict && a.constructor !== b.constructor) return false;
  if (open.some(([one, other]) => one === a && other === b)) return true;
  const inner = [...open, [a, b]];
  const same = (one, other) => equals(one, other, strict, inner);
  if (a instanceof Set) return a.size === b.size && [...a].every((one) => [...b].some((other) => same(one, other)));
  if (a instanceof Map) return a.size === b.size && [...a].every(([key, value]) => [...b].some(([k, v]) => same(key, k) && same(value, v)));
  if ((Array.isArray(a) || ArrayBuffer.isView(a)) && a.length !== b.length) return false;
  const keys = keysOf(a, strict);
  return keys.length === keysOf(b, strict).length && keys.every((key) => Object.hasOwn(b, key) && same(a[key], b[key]));
}

const within = (object, part) =>
  typeof part !== "object" || part === null || part instanceof Asymmetric || Array.isArray(part)
    ? equals(object, part)
    : typeof object === "object" && object !== null && keysOf(part, true).every((key) => key in object && within(object[key], part[key]));

const at = (object, path) => (Array.isArray(path) ? path : String(path).replace(/\[(\w+)\]/g, ".$1").split(".")).reduce(
  (found, key) => (found.there && found.value != null && key in Object(found.value) ? { there: true, value: found.value[key] } : { there: false }), { there: true, value: object });

// --- expect ---

function thrown(received, wanted) {
  let error;
  if (typeof received === "function") {
    try {
      received();
      return { pass: false, got: "nothing thrown" };
    } catch (caught) {
      error = caught;
    }
  } else error = received;
  const message = String(error?.message ?? error);
  const pass =
    wanted === undefined ? true
    : typeof wanted === "string" ? message.includes(wanted)
    : wanted instanceof RegExp ? wanted.test(message)
    : typeof wanted === "function" ? error instanceof wanted
    : wanted instanceof Asymmetric ? wanted.matches(error)
    : message === wanted.message;
  return { pass, got: error };
}

const mocked = (received) => {
  if (!received?.mock) throw new TypeError("this wants a function of jest.fn");
  return received.mock;
};

const MATCHERS = {
  toBe: (a, b) => Object.is(a, b),
  toEqual: (a, b) => equals(a, b),
  toStrictEqual: (a, b) => equals(a, b, true),
  toBeNull: (a) => a === null,
  toBeUndefined: (a) => a === undefined,
  toBeDefined: (a) => a !== undefined,
  toBeTruthy: (a) => Boolean(a),
  toBeFalsy: (a) => !a,
  toBeNaN: (a) => Number.isNaN(a),
  toBeGreaterThan: (a, b) => a > b,
  toBeGreaterThanOrEqual: (a, b) => a >= b,
  toBeLessThan: (a, b) => a < b,
  toBeLessThanOrEqual: (a, b) => a <= b,
  toBeCloseTo: (a, b, digits = 2) => Object.is(a, b) || Math.abs(a - b) < 10 ** -digits / 2,
  toBeInstanceOf: (a, b) => a instanceof b,
  toBeTypeOf: (a, b) => typeof a === b,
  toContain: (a, b) => (typeof a === "string" ? a.includes(b) : [...a].some((one) => Object.is(one, b))),
  toContainEqual: (a, b) => [...a].some((one) => equals(one, b)),
  toHaveLength: (a, b) => a?.length === b,
  toMatch: (a, b) => (typeof b === "string" ? a.includes(b) : b.test(a)),
  toMatchObject: (a, b) => within(a, b),
  toHaveProperty: (a, path, ...value) => {
    const found = at(a, path);
    return found.there && (value.length === 0 || equals(found.value, value[0]));
  },
  toThrow: thrown,
  toThrowError: thrown,
  toHaveBeenCalled: (a) => mocked(a).calls.length > 0,
  toHaveBeenCalledTimes: (a, count) => mocked(a).calls.length === count,
  toHaveBeenCalledWith: (a, ...words) => mocked(a).calls.some((call) => equals(call, words)),
  toHaveBeenLastCalledWith: (a, ...words) => equals(mocked(a).calls.at(-1), words),
  toHaveBeenNthCalledWith: (a, number, ...words) => equals(mocked(a).calls[number - 1], words),
  toHaveReturnedWith: (a, value) => mocked(a).results.some((result) => result.type === "return" && equals(result.value, value)),
};

function judge(name, matcher, received, wanted, not) {
  const outcome = matcher(received, ...wanted);
  const pass = typeof outcome === "object" ? outcome.pass : outcome;
  if (Boolean(pass) !== not) return;
  const said = typeof outcome?.message === "function" ? outcome.message() : undefined;
  const lines = [`expect(received)${not ? ".not" : ""}.${name}(${wanted.length ? "expected" : ""})`, ""];
  if (wanted.length) lines.push(`Expected: ${not ? "not " : ""}${wanted.map((one) => inspect(one)).join(", ")}`);
  const got = outcome && typeof outcome === "object" && "got" in outcome ? outcome.got : received?.mock ? received.mock.calls : received;
  lines.push(`Received: ${got instanceof Error ? `${got.name}: ${got.message}` : typeof got === "string" && name.startsWith("toThrow") ? got : inspect(got)}`);
  throw new AssertionError({ message: said ?? lines.join("\n"), stackStartFn: judge });
}

function matchers(received, not, settle) {
  const made = {};
  for (const [name, matcher] of Object.entries(MATCHERS)) {
    made[name] = (...wanted) => (settle ? settle(received).then((value) => judge(name, matcher, value, wanted, not)) : judge(name, matcher, received, wanted, not));
  }
  return made;
}

const settled = (promise) => (typeof promise === "function" ? promise() : promise);
const resolved = async (promise) => settled(promise);
const rejected = (promise) =>
  Promise.resolve(settled(promise)).then(
    (value) => {
      throw new AssertionError({ message: `Received promise resolved instead of rejected\nResolved to value: ${inspect(value)}` });
    },
    (error) => error,
  );

function expect(received) {
  const both = (settle) => ({ ...matchers(received, false, settle), not: matchers(received, true, settle) });
  return { ...both(), resolves: both(resolved), rejects: both(rejected) };
}
expect.extend = (more) => {
  for (const [name, matcher] of Object.entries(more)) {
    MATCHERS[name] = (...words) => matcher.apply({ equals, isNot: false, utils: { printReceived: inspect, printExpected: inspect } }, words);
  }
};
expect.anything = () => new Asymmetric("Anything", (value) => value != null);
expect.any = (type) => new Asymmetric(`Any<${type.name}>`, (value) => value instanceof type || typeof value === type.name.toLowerCase());
expect.arrayContaining = (part) => new Asymmetric(`ArrayContaining ${inspect(part)}`, (value) => Array.isArray(value) && part.every((one) => value.some((other) => equals(other, one))));
expect.objectContaining = (part) => new Asymmetric(`ObjectContaining ${inspect(part)}`, (value) => within(value, part));
expect.stringContaining = (part) => new Asymmetric(`StringContaining ${inspect(part)}`, (value) => typeof value === "string" && value.includes(part));
expect.stringMatching = (part) => new Asymmetric(`StringMatching ${inspect(part)}`, (value) => typeof value === "string" && new RegExp(part).test(value));
expect.closeTo = (wanted, digits) => new Asymmetric(`CloseTo ${wanted}`, (value) => MATCHERS.toBeCloseTo(value, wanted, digits));
expect.assertions = expect.hasAssertions = () => {};

// --- functions that remember their calls ---

function fn(body) {
  const once = [];
  const mock = { calls: [], results: [], instances: [], get lastCall() { return this.calls.at(-1); } };
  function called(...words) {
    mock.calls.push(words);
    mock.instances.push(this);
    try {
      const value = (once.shift() ?? body)?.apply(this, words);
      mock.results.push({ type: "return", value });
      return value;
    } catch (error) {
      mock.results.push({ type: "throw", value: error });
      throw error;
    }
  }
  const set = (next) => ((body = next), called);
  const then = (next) => (once.push(next), called);
  return Object.assign(called, {
    mock,
    mockImplementation: set,
    mockImplementationOnce: then,
    mockReturnValue: (value) => set(() => value),
    mockReturnValueOnce: (value) => then(() => value),
    mockResolvedValue: (value) => set(async () => value),
    mockResolvedValueOnce: (value) => then(async () => value),
    mockRejectedValue: (error) => set(async () => { throw error; }),
    mockRejectedValueOnce: (error) => then(async () => { throw error; }),
    mockClear: () => ((mock.calls.length = mock.results.length = mock.instances.length = 0), called),
    mockReset: () => ((once.length = 0), set(undefined).mockClear()),
  });
}

const spies = new Set();
function spyOn(object, name) {
  const original = object[name];
  const spy = fn(original);
  object[name] = spy;
  spy.mockRestore = () => ((object[name] = original), spies.delete(spy));
  spies.add(spy);
  return spy;
}

const lacking = (what) => ({
  get(there, name) {
    if (name in there || typeof name === "symbol" || name === "then") return there[name];
    throw new Error(`${what}.${name} is not there: these tests are node:test's, with the commonest words of Jest`);
  },
});
const all = (act) => () => void spies.forEach(act);
const jest = new Proxy({ fn, spyOn, setTimeout: () => {}, restoreAllMocks: all((spy) => spy.mockRestore()), clearAllMocks: all((spy) => spy.mockClear()) }, lacking("jest"));
const vi = jest;

module.exports = { afterAll, afterEach, beforeAll, beforeEach, describe, expect, fdescribe, fit, it, jest, test, vi, xdescribe, xit, xtest };
