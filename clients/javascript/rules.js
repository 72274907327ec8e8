/** The rules of an audience, compiled to one function of a user. */

import { folded } from "./folding.js";
import { compareMoments, compareVersions, moment, version } from "./orders.js";
import { Pattern } from "./patterns.js";
import { hex, sha256 } from "./sha256.js";

/** A rule of a later version, which only the service can evaluate. */
export class UnknownRule extends Error {}

/** Stands in a rule for a number that a double cannot hold exactly. */
export const INEXACT = "\0inexact";

const SEARCHED = 65_536; // characters; a longer text matches no pattern

// ---------------------------------------------------------------------------
// Values. A field that is missing is `undefined`.

const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Tell whether both are the same JSON value.
 *
 * The service compares decimals. Two doubles are equal, or one is greater, exactly if
 * this holds for the shortest decimals that they print as.
 */
export function same(left, right) {
  if (typeof left !== "object" || left === null) return left === right;
  if (Array.isArray(left)) {
    return (
      Array.isArray(right) &&
      left.length === right.length &&
      left.every((item, place) => same(item, right[place]))
    );
  }
  if (!isObject(right)) return false;
  const names = Object.keys(left);
  return (
    names.length === Object.keys(right).length &&
    names.every((name) => Object.hasOwn(right, name) && same(left[name], right[name]))
  );
}

// ---------------------------------------------------------------------------
// Operators: from the value of a rule to a test of the field

const not = (made) => (value) => {
  const test = made(value);
  return (actual) => !test(actual);
};

const equals = (value) => (actual) => same(actual, value);

const number = (compared) => (value) => (actual) =>
  isNumber(actual) && isNumber(value) && compared(actual, value);

function contains(value) {
  const part = isText(value) ? folded(value) : null;
  return (actual) => {
    if (isText(actual)) return part !== null && folded(actual).includes(part);
    return Array.isArray(actual) && actual.some((item) => same(value, item));
  };
}

function isIn(value) {
  const texts = new Set(value.filter(isText));
  const others = value.filter((item) => !isText(item));
  return (actual) =>
    isText(actual) ? texts.has(actual) : others.some((item) => same(actual, item));
}

const exists = () => (actual) => actual !== undefined && actual !== null;

/** Count characters, and not the halves of surrogate pairs. */
export function length(text) {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

function matches(value) {
  const pattern = new Pattern(value);
  return (actual) => {
    if (!isText(actual)) return false;
    if (actual.length > SEARCHED && length(actual) > SEARCHED) return false;
    return pattern.isIn(actual);
  };
}

const starts = (value) => (actual) => isText(actual) && actual.startsWith(value);
const ends = (value) => (actual) => isText(actual) && actual.endsWith(value);

const order = (read, compare, isRight) => (value) => {
  const bound = read(value);
  return (actual) => {
    const key = isText(actual) ? read(actual) : null;
    return key !== null && bound !== null && isRight(compare(key, bound));
  };
};

const versions = (isRight) => order(version, compareVersions, isRight);
const moments = (isRight) => order(moment, compareMoments, isRight);

/** @type {Map<string, (value: any) => (actual: any) => boolean>} */
export const OPERATORS = new Map([
  ["eq", equals],
  ["neq", not(equals)],
  ["gt", number((left, right) => left > right)],
  ["lt", number((left, right) => left < right)],
  ["gte", number((left, right) => left >= right)],
  ["lte", number((left, right) => left <= right)],
  ["contains", contains],
  ["not_contains", not(contains)],
  ["in", isIn],
  ["not_in", not(isIn)],
  ["exists", exists],
  ["not_exists", not(exists)],
  ["regex", matches],
  ["starts_with", starts],
  ["ends_with", ends],
  ["semver_gt", versions((sign) => sign > 0)],
  ["semver_gte", versions((sign) => sign >= 0)],
  ["semver_lt", versions((sign) => sign < 0)],
  ["semver_lte", versions((sign) => sign <= 0)],
  ["semver_eq", versions((sign) => sign === 0)],
  ["before", moments((sign) => sign < 0)],
  ["after", moments((sign) => sign > 0)],
]);

// ---------------------------------------------------------------------------
// Trees

/**
 * Return the function that tells whether the rules hold for a user id and attributes.
 *
 * Throw if only the service can tell.
 *
 * @param {any} rules
 * @param {string} salt that of the hashes of user ids
 * @returns {(userId: string, attributes: Record<string, any>) => boolean}
 */
export function compiled(rules, salt) {
  if ("rules" in rules) {
    const parts = rules.rules.map((rule) => compiled(rule, salt));
    if (rules.logicalOperator === "AND") {
      return (user, facts) => parts.every((part) => part(user, facts));
    }
    if (rules.logicalOperator === "OR") {
      return (user, facts) => parts.some((part) => part(user, facts));
    }
    throw new UnknownRule(String(rules.logicalOperator));
  }
  if ("hashes" in rules) return hashed(rules, salt);
  const operator = OPERATORS.get(rules.operator);
  const names = Object.keys(rules);
  const isKnown = names.every((name) => ["field", "operator", "value"].includes(name));
  if (operator === undefined || !isKnown || hasInexact(rules.value)) {
    throw new UnknownRule(JSON.stringify(rules));
  }
  const test = operator(rules.value);
  const read = reader(rules.field);
  return (user, facts) => test(read(user, facts));
}

function hasInexact(value) {
  if (typeof value !== "object" || value === null) return false;
  return Object.hasOwn(value, INEXACT) || Object.values(value).some(hasInexact);
}

function hashed(rule, salt) {
  if (rule.field !== "userId" || !["in", "not_in"].includes(rule.operator)) {
    throw new UnknownRule(JSON.stringify(rule));
  }
  const hashes = new Set(rule.hashes);
  const isWanted = rule.operator === "in";
  return (user) => hashes.has(hex(sha256(`${salt}:${user}`))) === isWanted;
}

/** Return the function that reads a path; `userId` is the user asked about. */
function reader(field) {
  const own = (facts, name) => (Object.hasOwn(facts, name) ? facts[name] : undefined);
  if (field === "userId") return (user) => user;
  if (!field.includes(".") || field.startsWith("userId.")) {
    return (user, facts) => own(facts, field);
  }
  return (user, facts) => {
    let path = field;
    let value = facts;
    while (isObject(value)) {
      if (Object.hasOwn(value, path)) return value[path];
      const dot = path.indexOf(".");
      if (dot < 0) return undefined;
      value = own(value, path.slice(0, dot));
      path = path.slice(dot + 1);
    }
    return undefined;
  };
}
