// `expect` as Jest 30 has it: equality, matchers, asymmetric matchers. tests/unit/imagegen/test_jest.py compares it with Jest's own
// answers to a table of assertions.
"use strict";
const { AssertionError } = require("node:assert");
const { inspect } = require("node:util");

// --- equality (Jest's @jest/expect-utils) ---

const tag = (value) => Object.prototype.toString.call(value);
const isObject = (value) => typeof value === "object" && value !== null;
const asymmetric = (value) => typeof value?.asymmetricMatch === "function";
const keysOf = (value) => Reflect.ownKeys(value).filter((key) => Object.prototype.propertyIsEnumerable.call(value, key));
const above = (value, key) =>
  isObject(value) && value !== Object.prototype && (Object.hasOwn(value, key) || above(Object.getPrototypeOf(value), key));
const added = []; // by expect.addEqualityTesters

// Testers say whether two values are equal, or undefined if they do not know.
function equals(a, b, testers = [], strict = false, open = []) {
  if (asymmetric(a) !== asymmetric(b)) return asymmetric(a) ? a.asymmetricMatch(b) : b.asymmetricMatch(a);
  for (const tester of testers) {
    const known = tester.call({ equals }, a, b, testers, strict, open);
    if (known !== undefined) return known;
  }
  if (a instanceof Error && b instanceof Error) return a.message === b.message;
  if (Object.is(a, b)) return true;
  if (!isObject(a) || !isObject(b) || tag(a) !== tag(b)) return false;
  if (["[object Boolean]", "[object String]", "[object Number]"].includes(tag(a))) return Object.is(a.valueOf(), b.valueOf());
  if (tag(a) === "[object Date]") return +a === +b;
  if (tag(a) === "[object RegExp]") return a.source === b.source && a.flags === b.flags;
  if (tag(a) === "[object URL]") return a.href === b.href;
  const known = open.find(([one, other]) => one === a || other === b);
  if (known) return known[0] === a && known[1] === b;
  if (strict && Array.isArray(a) && a.length !== b.length) return false;
  const absent = (one, key) => !strict && (one[key] === undefined || asymmetric(one[key]));
  const inner = [...open, [a, b]];
  const [left, right] = [keysOf(a), keysOf(b)];
  const lacked = (one, keys, other) => keys.filter((key) => absent(one, key) && !Object.hasOwn(other, key));
  left.push(...lacked(b, right, a));
  right.push(...lacked(a, left, b));
  return (
    left.length === right.length &&
    left.every((key) => (Object.hasOwn(b, key) || absent(a, key)) && equals(a[key], b[key], testers, strict, inner))
  );
}

function iterables(a, b, testers, strict, open) {
  const walks = (value) => isObject(value) && !Array.isArray(value) && !ArrayBuffer.isView(value) && Boolean(value[Symbol.iterator]);
  if (!walks(a) || !walks(b)) return undefined;
  if (a.constructor !== b.constructor) return false;
  const known = open.find(([one]) => one === a);
  if (known) return known[1] === b;
  const inner = [...open, [a, b]];
  const same = (one, other) => equals(one, other, testers, false, inner);
  if (a.size !== undefined && a.size !== b.size) return false;
  if (tag(a) === "[object Set]") return [...a].every((one) => b.has(one) || [...b].some((other) => same(one, other)));
  if (tag(a) === "[object Map]") {
    return [...a].every(
      ([key, value]) => (b.has(key) && same(value, b.get(key))) || [...b].some(([k, v]) => same(key, k) && same(value, v)),
    );
  }
  const left = a[Symbol.iterator](),
    right = b[Symbol.iterator]();
  for (;;) {
    const one = left.next(),
      other = right.next();
    if (one.done || other.done) {
      if (!one.done || !other.done) return false;
      const own = (value) =>
        Object.fromEntries(
          keysOf(value)
            .filter((key) => key !== Symbol.iterator)
            .map((key) => [key, value[key]]),
        );
      return equals(own(a), own(b));
    }
    if (!same(one.value, other.value)) return false;
  }
}

function types(a, b) {
  return a == null || b == null || a.constructor === b.constructor || (Array.isArray(a) && Array.isArray(b)) ? undefined : false;
}

function sparse(a, b, testers) {
  if (!Array.isArray(a) || !Array.isArray(b)) return undefined;
  return (
    equals(
      a,
      b,
      testers.filter((tester) => tester !== sparse),
      true,
    ) && equals(Object.keys(a), Object.keys(b))
  );
}

function bytes(a, b) {
  const view = (value) =>
    ArrayBuffer.isView(value)
      ? Buffer.from(value.buffer, value.byteOffset, value.byteLength)
      : value instanceof ArrayBuffer
        ? Buffer.from(value)
        : null;
  const [one, other] = [view(a), view(b)];
  return one && other ? one.equals(other) : undefined;
}

function subset(open = []) {
  return function within(object, part, testers) {
    if (
      !isObject(part) ||
      part instanceof Error ||
      Array.isArray(part) ||
      part instanceof Date ||
      part instanceof Set ||
      part instanceof Map
    )
      return undefined;
    if (open.includes(part)) return undefined;
    const inner = [...testers.filter((tester) => tester.name !== "within"), subset([...open, part])];
    return keysOf(part).every((key) => above(object, key) && equals(object[key], part[key], inner));
  };
}

const alike = (a, b) => equals(a, b, [...added, iterables]);

// --- asymmetric matchers ---

class Asymmetric {
  constructor(words, matches, not = false) {
    this.$$typeof = Symbol.for("jest.asymmetricMatcher");
    this.asymmetricMatch = (value) => Boolean(matches(value)) !== not;
    this[inspect.custom] = () => (not ? `not ${words}` : words);
  }
}

const TYPES = {
  String: "string",
  Number: "number",
  Boolean: "boolean",
  BigInt: "bigint",
  Symbol: "symbol",
  Function: "function",
  Object: "object",
};
const isOf = (type, name) => (value) => tag(value) === `[object ${name}]`;

function wanted(is, what, value) {
  if (!is(value)) throw new TypeError(`expected value must be ${what}\n\nExpected: ${inspect(value)}`);
  return value;
}
const aString = isOf(String, "String");
const aNumber = isOf(Number, "Number");
const pattern = (value) => aString(value) || tag(value) === "[object RegExp]";

// What is of another type does not match, with `not` either.
function only(is, made) {
  const { asymmetricMatch } = made;
  made.asymmetricMatch = (value) => is(value) && asymmetricMatch(value);
  return made;
}

const asymmetrics = (not) => ({
  arrayContaining: (part) =>
    new Asymmetric(
      `ArrayContaining ${inspect(part)}`,
      (value) =>
        wanted(Array.isArray, "an array", part).length === 0 ||
        (Array.isArray(value) && part.every((one) => value.some((other) => equals(one, other, added)))),
      not,
    ),
  arrayOf: (one) =>
    new Asymmetric(`ArrayOf ${inspect(one)}`, (value) => Array.isArray(value) && value.every((other) => equals(one, other, added)), not),
  closeTo: (number, digits = 2) =>
    only(aNumber, new Asymmetric(`NumberCloseTo ${wanted(aNumber, "a number", number)}`, (value) => close(value, number, digits), not)),
  objectContaining: (part) => {
    const has = (value, key) => Boolean(value) && (Object.hasOwn(value, key) || has(Object.getPrototypeOf(value), key));
    const matches = (value) =>
      keysOf(wanted((it) => typeof it === "object", "an object", part)).every(
        (key) => has(value, key) && equals(part[key], value[key], added),
      );
    const anObject = (value) => typeof value === "object" && !Array.isArray(value);
    return only(anObject, new Asymmetric(`ObjectContaining ${inspect(part)}`, matches, not));
  },
  stringContaining: (part) =>
    new Asymmetric(
      `StringContaining ${inspect(wanted(aString, "a string", part))}`,
      (value) => aString(value) && value.includes(part),
      not,
    ),
  stringMatching: (part) => {
    const made = new RegExp(wanted(pattern, "a string or a regular expression", part));
    return new Asymmetric(`StringMatching ${inspect(made)}`, (value) => aString(value) && made.test(value), not);
  },
});

function any(type) {
  if (type === undefined) throw new TypeError("any() wants a constructor; anything() is for all that is not null or undefined");
  const name = TYPES[type.name] && globalThis[type.name] === type ? TYPES[type.name] : "";
  return new Asymmetric(`Any<${type.name}>`, (value) =>
    type === Array ? Array.isArray(value) : (name && typeof value === name) || (type !== Object && value instanceof type),
  );
}

// --- matchers ---

class Misuse extends Error {}
const refuse = (what, value) => {
  throw new Misuse(`${what}\n\nIt is: ${inspect(value)}`);
};
const numeric = (value) => typeof value === "number" || typeof value === "bigint";
function numbers(a, b) {
  if (!numeric(a)) refuse("received value must be a number or bigint", a);
  if (!numeric(b)) refuse("expected value must be a number or bigint", b);
  return true;
}
const close = (a, b, digits) => (Math.abs(a) === Infinity || Math.abs(b) === Infinity ? a === b : Math.abs(b - a) < 10 ** -digits / 2);
const whole = (value) => (Number.isSafeInteger(value) && value >= 0) || refuse("expected value must be a non-negative integer", value);
const from = (value) => (typeof value?.[Symbol.iterator] === "function" ? [...value] : refuse("received value must be iterable", value));

function pathOf(path) {
  if (Array.isArray(path)) return path.length ? path : refuse("expected path must not be an empty array", path);
  if (typeof path !== "string") refuse("expected path must be a string or array", path);
  if (path === "") return [""];
  return [...(path[0] === "." ? [""] : []), ...(path.match(/[^.[\]]+|(?=\.(?:\.|$))/g) ?? [])];
}

function property(object, path, ...value) {
  if (object == null) refuse("received value must not be null nor undefined", object);
  const names = pathOf(path);
  let at = object;
  for (const name of names.slice(0, -1)) {
    at = at[name];
    if (at == null) return false;
  }
  const last = names.at(-1);
  const defined = (isObject(at) || typeof at === "function") && last in at;
  return value.length && defined ? alike(at[last], value[0]) : at[last] !== undefined || defined;
}

function thrown(received, expected, { promise }) {
  let found = null;
  if (promise === "rejects" && received instanceof Error) found = { error: received };
  else if (typeof received === "function") {
    try {
      received();
    } catch (error) {
      found = { error };
    }
  } else if (!promise) refuse("received value must be a function", received);
  const { error } = found ?? {};
  const message = found && (typeof error?.message === "string" ? error.message : String(error));
  let pass = found !== null;
  if (typeof expected === "function") pass &&= error instanceof expected;
  else if (typeof expected === "string") pass &&= message.includes(expected);
  else if (typeof expected?.test === "function") pass &&= expected.test(message);
  else if (asymmetric(expected)) pass &&= expected.asymmetricMatch(error);
  else if (isObject(expected)) {
    const causes = (one) =>
      one?.cause === undefined ? "" : one.cause instanceof Error ? `${one.cause.message}: ${causes(one.cause)}` : inspect(one.cause);
    pass &&= message === expected.message && causes(error) === causes(expected);
    if (error instanceof Error && expected instanceof Error && expected.constructor !== Error)
      pass &&= error instanceof expected.constructor;
  } else if (expected !== undefined) refuse("expected value must be a string, a regular expression, a class or an error", expected);
  return { pass, got: found ? error : "nothing thrown" };
}

const mocked = (received) => received?.mock ?? refuse("received value must be a function of jest.fn", received);
const calls = (received) => mocked(received).calls;
const returned = (received) =>
  mocked(received)
    .results.filter((result) => result.type === "return")
    .map((result) => result.value);
const result = (entry, value) => entry?.type === "return" && alike(value, entry.value);
const nth = (number) => (Number.isSafeInteger(number) && number > 0 ? number - 1 : refuse("n must be a positive integer", number));
const called = (call, words) => call !== undefined && call.length === words.length && alike(words, call);

const MATCHERS = {
  toBe: (a, b) => Object.is(a, b),
  toEqual: (a, b) => alike(a, b),
  toStrictEqual: (a, b) => equals(a, b, [...added, iterables, types, sparse, bytes], true),
  toBeNull: (a) => a === null,
  toBeUndefined: (a) => a === undefined,
  toBeDefined: (a) => a !== undefined,
  toBeNullable: (a) => a == null,
  toBeTruthy: (a) => Boolean(a),
  toBeFalsy: (a) => !a,
  toBeNaN: (a) => Number.isNaN(a),
  toBeGreaterThan: (a, b) => numbers(a, b) && a > b,
  toBeGreaterThanOrEqual: (a, b) => numbers(a, b) && a >= b,
  toBeLessThan: (a, b) => numbers(a, b) && a < b,
  toBeLessThanOrEqual: (a, b) => numbers(a, b) && a <= b,
  toBeCloseTo: (a, b, digits = 2) => {
    for (const value of [a, b]) if (typeof value !== "number") refuse("received and expected value must be numbers", value);
    return close(a, b, digits);
  },
  toBeInstanceOf: (a, b) => (typeof b === "function" ? a instanceof b : refuse("expected value must be a function", b)),
  toBeTypeOf: (a, b) => typeof a === b,
  toBeOneOf: (a, b) => from(b).some((one) => alike(a, one)),
  toContain: (a, b) =>
    typeof a !== "string"
      ? from(a).indexOf(b) >= 0
      : typeof b === "string"
        ? a.includes(b)
        : refuse("expected value must be a string if received is", b),
  toContainEqual: (a, b) => from(a).some((one) => alike(one, b)),
  toHaveLength: (a, b) =>
    typeof a?.length === "number"
      ? whole(b) && a.length === b
      : refuse("received value must have a length property whose value is a number", a),
  toMatch: (a, b) => {
    if (typeof a !== "string") refuse("received value must be a string", a);
    return typeof b === "string"
      ? a.includes(b)
      : typeof b?.test === "function"
        ? new RegExp(b).test(a)
        : refuse("expected value must be a string or a regular expression", b);
  },
  toMatchObject: (a, b) => {
    for (const value of [a, b]) if (!isObject(value)) refuse("received and expected value must be non-null objects", value);
    return equals(a, b, [...added, iterables, subset()]);
  },
  toHaveProperty: property,
  toThrow: thrown,
  toHaveBeenCalled: (a) => calls(a).length > 0,
  toHaveBeenCalledTimes: (a, count) => whole(count) && calls(a).length === count,
  toHaveBeenCalledOnce: (a) => calls(a).length === 1,
  toHaveBeenCalledWith: (a, ...words) => calls(a).some((call) => called(call, words)),
  toHaveBeenLastCalledWith: (a, ...words) => called(calls(a).at(-1), words),
  toHaveBeenNthCalledWith: (a, number, ...words) => called(calls(a)[nth(number)], words),
  toHaveReturned: (a) => returned(a).length > 0,
  toHaveReturnedTimes: (a, count) => whole(count) && returned(a).length === count,
  toHaveReturnedWith: (a, value) => mocked(a).results.some((entry) => result(entry, value)),
  toHaveLastReturnedWith: (a, value) => result(mocked(a).results.at(-1), value),
  toHaveNthReturnedWith: (a, number, value) => result(mocked(a).results[nth(number)], value),
};
const OLD_NAMES = {
  toThrowError: "toThrow",
  toBeCalled: "toHaveBeenCalled",
  toBeCalledTimes: "toHaveBeenCalledTimes",
  toBeCalledWith: "toHaveBeenCalledWith",
  lastCalledWith: "toHaveBeenLastCalledWith",
  nthCalledWith: "toHaveBeenNthCalledWith",
  toReturn: "toHaveReturned",
  toReturnTimes: "toHaveReturnedTimes",
  toReturnWith: "toHaveReturnedWith",
  lastReturnedWith: "toHaveLastReturnedWith",
  nthReturnedWith: "toHaveNthReturnedWith",
};
for (const [old, name] of Object.entries(OLD_NAMES)) MATCHERS[old] = MATCHERS[name];
const ALONE = new Set([
  "toBeNull",
  "toBeUndefined",
  "toBeDefined",
  "toBeNullable",
  "toBeTruthy",
  "toBeFalsy",
  "toBeNaN",
  "toHaveBeenCalled",
  "toHaveReturned",
]);

// --- expect ---

const state = { calls: 0, wanted: null, some: false };
const begin = () => Object.assign(state, { calls: 0, wanted: null, some: false });

// What expect.assertions and expect.hasAssertions asked for, once a test has ended well.
function finish() {
  if (state.wanted !== null && state.calls !== state.wanted) {
    throw new AssertionError({
      message: `expect.assertions(${state.wanted})\n\nExpected: ${state.wanted} assertions\nReceived: ${state.calls}`,
    });
  }
  if (state.some && state.calls === 0)
    throw new AssertionError({ message: "expect.hasAssertions()\n\nExpected: at least one assertion\nReceived: none" });
}

function tell(name, received, words, not, outcome) {
  const pass = Boolean(isObject(outcome) ? outcome.pass : outcome);
  if (pass !== not) return;
  const lines = [`expect(received)${not ? ".not" : ""}.${name}(${words.length ? "expected" : ""})`, ""];
  if (words.length) lines.push(`Expected: ${not ? "not " : ""}${words.map((one) => inspect(one)).join(", ")}`);
  const got = isObject(outcome) && "got" in outcome ? outcome.got : received?.mock ? received.mock.calls : received;
  lines.push(`Received: ${got instanceof Error ? `${got.name}: ${got.message}` : got === "nothing thrown" ? got : inspect(got)}`);
  const said = typeof outcome?.message === "function" ? outcome.message() : undefined;
  throw new AssertionError({ message: said ?? lines.join("\n"), stackStartFn: tell });
}

const utils = new Proxy(
  { matcherHint: (name) => `expect(received).${name}(expected)`, diff: () => "", iterableEquality: iterables, subsetEquality: subset() },
  { get: (known, name) => known[name] ?? (/COLOR$/.test(String(name)) ? String : inspect) },
);

function judge(name, received, words, not, promise = "") {
  state.calls++;
  if (ALONE.has(name) && words.length) refuse(`${name} takes no expected value`, words[0]);
  const context = { equals, isNot: not, promise, utils, customTesters: added };
  const own = MATCHERS[name].own;
  const outcome = own
    ? own.call(context, received, ...words)
    : name.startsWith("toThrow")
      ? thrown(received, words[0], context)
      : MATCHERS[name](received, ...words);
  if (typeof outcome?.then === "function") return outcome.then((later) => tell(name, received, words, not, later));
  return tell(name, received, words, not, outcome);
}

const promised = (promise) => {
  const made = typeof promise === "function" ? promise() : promise;
  return typeof made?.then === "function" ? made : refuse("received value must be a promise or a function returning one", promise);
};
const settle = {
  resolves: async (promise) =>
    promised(promise).then(undefined, (error) => {
      throw new AssertionError({ message: `Received promise rejected instead of resolved\nRejected to value: ${inspect(error)}` });
    }),
  rejects: async (promise) =>
    promised(promise).then(
      (value) => {
        throw new AssertionError({ message: `Received promise resolved instead of rejected\nResolved to value: ${inspect(value)}` });
      },
      (error) => error,
    ),
};

function matchers(received, not, promise) {
  const made = {};
  for (const name of Object.keys(MATCHERS)) {
    made[name] = (...words) =>
      promise ? settle[promise](received).then((value) => judge(name, value, words, not, promise)) : judge(name, received, words, not);
  }
  return made;
}

function expect(received) {
  const both = (promise) => ({ ...matchers(received, false, promise), not: matchers(received, true, promise) });
  return { ...both(), resolves: both("resolves"), rejects: both("rejects") };
}
Object.assign(expect, asymmetrics(false), {
  soft: (received) => expect(received), // Vitest's, which ends its test here
  any,
  anything: () => new Asymmetric("Anything", (value) => value != null),
  not: asymmetrics(true),
  extend: (more) => {
    for (const [name, own] of Object.entries(more)) {
      MATCHERS[name] = Object.assign(() => {}, { own });
      const made =
        (not) =>
        (...words) =>
          new Asymmetric(name, (value) => own.call({ equals, isNot: not, utils, customTesters: added }, value, ...words).pass, not);
      expect[name] = made(false);
      expect.not[name] = made(true);
    }
  },
  addEqualityTesters: (testers) => void added.push(...testers),
  assertions: (count) => void (state.wanted = count),
  hasAssertions: () => void (state.some = true),
  getState: () => ({ assertionCalls: state.calls, expectedAssertionsNumber: state.wanted, isExpectingAssertions: state.some }),
});

const seen = { tests: false }; // whether a file has groups or tests
module.exports = { begin, expect, finish, seen };
