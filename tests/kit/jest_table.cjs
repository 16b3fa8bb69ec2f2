// What comes of jest_assertions.txt, whose answers are those of Jest 30's own packages `expect` and `jest-mock`: a line of JSON, true for
// each assertion that passes.
// node jest_table.cjs MODULE OF expect, MODULE OF jest
"use strict";
const { expect } = require(process.argv[2]);
const { fn } = require(process.argv[3]).jest;
const lines = require("node:fs").readFileSync(`${__dirname}/jest_assertions.txt`, "utf8").trim().split("\n");

class Hidden { #value; constructor(value) { this.#value = value; } }
class Other { #value; constructor(value) { this.#value = value; } }
class Point { constructor(x, y) { this.x = x; this.y = y; } get sum() { return this.x + this.y; } }
class Walk { constructor(last) { this.last = last; } *[Symbol.iterator]() { yield this.last; } }
const round = (a) => { const made = { a }; made.self = made; return made; };
const called = fn((value) => value + 1);
called(1), called({ a: 1 }, "b"), called();

const names = { expect, Hidden, Other, Point, Walk, round, called };
(async () => {
  const answers = [];
  for (const line of lines) {
    try {
      await new Function(...Object.keys(names), `return ${line.slice(5)}`)(...Object.values(names));
      answers.push(true);
    } catch (error) {
      answers.push(false);
      if (process.env.SHOW) console.error(line, "\n   ", error.message);
    }
  }
  console.log(JSON.stringify(answers));
})();
