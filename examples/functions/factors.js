// The prime factors of a number: `{"request": 84}` in, `{"request": 84, "factors": [2, 2, 3, 7]}` out.
"use strict";

const LARGEST = 2 ** 40;

exports.handle = async (event) => {
  const { request } = event ?? {};
  if (!Number.isInteger(request) || request < 1 || request > LARGEST) {
    throw new RangeError(`send {"request": N}, a number from 1 to ${LARGEST}`);
  }
  const factors = [];
  let rest = request;
  for (let factor = 2; factor * factor <= rest; factor++) {
    for (; rest % factor === 0; rest /= factor) factors.push(factor);
  }
  if (rest > 1) factors.push(rest);
  return { ...event, factors };
};
