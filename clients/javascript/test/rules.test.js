import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { AskService, Definitions, bucket, isUserId } from "../decider.js";
import { compareVersions, version } from "../orders.js";
import { Pattern, TooCostly, UnsupportedPattern } from "../patterns.js";
import { OPERATORS, compiled } from "../rules.js";

const cases = (name) =>
  JSON.parse(readFileSync(new URL(`../../../tests/cases/${name}.json`, import.meta.url)));

/** Tell whether there is an integer that JavaScript has rounded in reading it. */
const isRounded = (value) =>
  typeof value === "object" && value !== null
    ? Object.values(value).some(isRounded)
    : Number.isInteger(value) && !Number.isSafeInteger(value);

test("each row of the truth table holds", () => {
  let rows = 0;
  let rounded = 0;
  let asked = 0;
  for (const [operator, table] of Object.entries(cases("operators"))) {
    for (const row of table) {
      const tree = { field: "x", operator };
      if ("value" in row) tree.value = row.value;
      const attributes = "is" in row ? { x: row.is } : {};
      rows++;
      if (isRounded(row)) {
        rounded++;
        continue;
      }
      try {
        const holds = compiled(tree, "users:exp_1")("u1", attributes);
        assert.equal(holds, row.holds, JSON.stringify([operator, row]));
      } catch (error) {
        if (!(error instanceof UnsupportedPattern)) throw error;
        asked++;
      }
    }
  }
  console.log(`${rows} rows; ${asked} are left to the service, ${rounded} no double can hold`);
  assert.ok(rows > 300 && asked < 20 && rounded < 10);
});

test("there is every operator", () => {
  assert.deepEqual([...OPERATORS.keys()].sort(), Object.keys(cases("operators")).sort());
});

test("versions come in the order of their table", () => {
  for (const [one, other, order] of cases("versions")) {
    assert.equal(Math.sign(compareVersions(version(one), version(other))), order, one + other);
  }
});

test("the published buckets", () => {
  for (const [user, place] of [["user-1", 3520], ["user-2", 5983], ["Zoë", 8203], ["用户42", 5809]]) {
    assert.equal(bucket("exp_abc123", user), place);
  }
});

const definitions = (rules) => `{"data": {"version": 1, "revision": "r", "omitted": 0, "experiments": [{
  "id": "exp_1", "key": "one", "status": "running", "endDate": null,
  "salts": {"variant": "exp_1", "traffic": "exp_1:traffic", "group": null, "userId": "users:exp_1"},
  "variants": [{"id": "v1", "name": "A", "split": 10000, "flowId": null, "config": {"n": 12345678901234567890}}],
  "traffic": 10000, "rules": ${rules}, "ranges": null, "winner": null, "overrides": {}}]}}`;

test("what is not known here is left to the service", () => {
  for (const rules of [
    '{"field": "x", "operator": "later", "value": 1}',
    '{"field": "x", "operator": "eq", "value": 1, "unless": 2}',
    '{"logicalOperator": "XOR", "rules": [{"field": "x", "operator": "exists"}]}',
    '{"field": "x", "operator": "eq", "hashes": []}',
    '{"field": "x", "operator": "regex", "value": "\\\\p{Greek}"}',
    '{"field": "x", "operator": "regex", "value": "(a+)+$"}',
    '{"field": "x", "operator": "gt", "value": 9007199254740993}',
    '{"field": "x", "operator": "eq", "value": {"a": [0.12345678901234567890]}}',
    '{"field": "x", "operator": "lt", "value": 1e999}',
  ]) {
    assert.throws(() => new Definitions(definitions(rules)).decide("one", "u1", {}), AskService, rules);
  }
});

test("a number that is exact is decided here", () => {
  for (const [value, x] of [["100000000000000000000", 1e20], ["0.30000000000000004", 0.1 + 0.2], ["2.5e-7", 2.5e-7], ["1.0", 1]]) {
    const rules = `{"field": "x", "operator": "eq", "value": ${value}}`;
    const decision = new Definitions(definitions(rules)).decide("one", "u1", { x });
    assert.equal(decision.reason, "NEW_ASSIGNMENT");
    assert.equal(decision.variant.config.n, 12345678901234567890);
  }
});

test("a text that is too long for a pattern is left to the service", () => {
  const rules = '{"field": "x", "operator": "regex", "value": "a.*b"}';
  const made = new Definitions(definitions(rules));
  assert.equal(made.decide("one", "u1", { x: "acb" }).reason, "NEW_ASSIGNMENT");
  assert.throws(() => made.decide("one", "u1", { x: "a".repeat(5000) }), AskService);
  assert.equal(made.decide("one", "u1", { x: "a".repeat(65_537) }).reason, "NOT_IN_AUDIENCE");
});

test("no pattern takes long", () => {
  const worst = ["a?a?a?a?a?a?a*b", "(a|a|a)(a|a|a)(a|a|a)(a|a|a)b", ".*a.*b", "a{1,9}a{1,9}a*b", "a{500}b"];
  for (const pattern of worst) {
    const made = new Pattern(pattern);
    const text = "a".repeat(Math.min(made.longest, 65_536));
    const began = performance.now();
    assert.equal(made.isIn(text), false);
    const taken = performance.now() - began;
    assert.ok(taken < 100, `${pattern} took ${taken} ms for ${text.length} characters`);
    assert.throws(() => made.isIn("a".repeat(made.longest + 1)), TooCostly);
  }
  assert.throws(() => new Pattern("(a|b|c)".repeat(12)), UnsupportedPattern);
});

test("a field with the name of a method of objects is missing", () => {
  const rules = '{"field": "constructor", "operator": "exists"}';
  const decision = new Definitions(definitions(rules)).decide("one", "u1", {});
  assert.equal(decision.reason, "NOT_IN_AUDIENCE");
});

test("ids that stand for a missing one are refused", () => {
  for (const id of ["", " ", "null", " Undefined ", "unde\ufb01ned", "a\0", "\ud800", "x".repeat(256), 7, null, "\x85NaN"]) {
    assert.equal(isUserId(id), false, String(id));
  }
  for (const id of ["u1", "Zoë", "nul", "\ufeff", "x".repeat(255), "\u{1f600}".repeat(255)]) {
    assert.equal(isUserId(id), true, id);
  }
});
