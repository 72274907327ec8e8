import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, beforeEach, test } from "node:test";

import { ProviderEvents } from "@openfeature/web-sdk";

import { AbacusWebProvider } from "../web.js";

/** A service that keeps its requests, and answers what a test has put here. */
let requests = [];
let flags = [];
let delay = 0;
let fail = null;
const server = createServer(async (request, response) => {
  let text = "";
  for await (const part of request) text += part;
  const body = JSON.parse(text);
  requests.push({ path: request.url, headers: request.headers, body });
  if (delay) await new Promise((done) => setTimeout(done, delay));
  const answer = (status, value, headers = {}) => {
    response.writeHead(status, { "Content-Type": "application/json", ...headers });
    response.end(value === undefined ? undefined : JSON.stringify(value));
  };
  if (fail) return answer(fail, {}, { Location: "/elsewhere" });
  if (request.url.startsWith("/ofrep")) {
    const tag = `"${JSON.stringify(flags).length}"`;
    if (request.headers["if-none-match"] === tag) return answer(304);
    return answer(200, { flags, user: body.context.targetingKey }, { ETag: tag });
  }
  if (request.url.includes("/assignments/")) {
    const enrolled = ({ userId }) => ({ userId, variantId: "v2", reason: "EXISTING_ASSIGNMENT" });
    return answer(200, { data: body.users.map(enrolled) });
  }
  return answer(200, { data: body.events.map(() => []) });
});

const flag = (key, value, variant = "v1", reason = "SPLIT") => ({
  key, value, variant, reason, metadata: { experimentId: "exp_1" },
});
const count = (part) => requests.filter(({ path }) => path.includes(part)).length;

before(() => new Promise((done) => server.listen(0, "127.0.0.1", done)));
after(() => server.close());
beforeEach(() => {
  requests = [];
  flags = [flag("checkout", "flow_a"), flag("checkout.config", { steps: 3 })];
  delay = 0;
  fail = null;
});

function made(options = {}) {
  const url = `http://127.0.0.1:${server.address().port}/`;
  return new AbacusWebProvider(url, async () => "t", { pollMs: 0, warn: () => {}, ...options });
}

const read = (provider, key = "checkout") => provider.resolveStringEvaluation(key, "x", {});

test("the first read of a flag enrols, and another variant is followed", async () => {
  const provider = made();
  await provider.initialize({ targetingKey: "u1", plan: "pro", at: new Date(0), no: undefined });
  assert.deepEqual(requests[0].body.context, {
    targetingKey: "u1", plan: "pro", at: "1970-01-01T00:00:00.000Z",
  });
  assert.equal(requests[0].headers.authorization, "Bearer t");
  for (let n = 0; n < 3; n++) assert.equal(read(provider).value, "flow_a");
  for (let n = 0; n < 2; n++) {
    const { value } = provider.resolveObjectEvaluation("checkout.config", {}, {});
    assert.deepEqual(value, { steps: 3 });
    value.steps = 99; // stays with the application
  }
  flags = [flag("checkout", "flow_bb", "v2")];
  assert.equal(await provider.flush(), true);
  assert.equal(count("/api/experiments/exp_1/assignments/batch"), 1);
  await provider.refresh();
  assert.equal(read(provider).value, "flow_bb");
  await provider.onClose();
});

test("overrides, winners and users outside enrol nobody", async () => {
  flags = [
    flag("forced", "a", "v1", "TARGETING_MATCH"),
    flag("won", "a", "v1", "DEFAULT"),
    { key: "outside", variant: "not_enrolled", reason: "DEFAULT", metadata: { experimentId: "e" } },
  ];
  const provider = made();
  await provider.initialize({ targetingKey: "u1" });
  assert.equal(read(provider, "forced").value, "a");
  assert.equal(read(provider, "won").value, "a");
  assert.equal(read(provider, "outside").value, "x");
  assert.equal(provider.counters.enrolmentsQueued, 0);
});

test("to poll costs nothing while nothing changes, and tells of a change", async () => {
  const provider = made({ pollMs: 20 });
  let changes = 0;
  provider.events.addHandler(ProviderEvents.ConfigurationChanged, () => changes++);
  await provider.initialize({ targetingKey: "u1" });
  while (requests.length < 4) await new Promise((done) => setTimeout(done, 10));
  assert.equal(changes, 0);
  assert.ok(requests[2].headers["if-none-match"]);
  flags = [flag("checkout", "another")];
  while (changes === 0) await new Promise((done) => setTimeout(done, 10));
  assert.equal(read(provider).value, "another");
  await provider.onClose();
  const before = requests.length;
  await new Promise((done) => setTimeout(done, 80));
  assert.equal(requests.length, before);
});

test("a user never sees the flags of another one", async () => {
  const provider = made();
  await provider.initialize({ targetingKey: "u1" });
  delay = 50;
  const change = provider.onContextChange({}, { targetingKey: "u2" });
  assert.throws(() => read(provider), { code: "PROVIDER_NOT_READY" });
  await change;
  assert.equal(read(provider).value, "flow_a");
  fail = 503;
  await provider.onContextChange({}, { targetingKey: "u3" });
  assert.throws(() => read(provider), { code: "PROVIDER_NOT_READY" });
  fail = null;
  await provider.onContextChange({}, {});
  assert.throws(() => read(provider), { code: "TARGETING_KEY_MISSING" });
  await provider.onContextChange({}, { targetingKey: "null" });
  assert.throws(() => read(provider), { code: "INVALID_CONTEXT" });
  await provider.onClose();
});

test("the answer to an earlier context is not used for a later one", async () => {
  const provider = made();
  await provider.initialize({ targetingKey: "u1" });
  delay = 80;
  flags = [flag("checkout", "old")];
  const slow = provider.onContextChange({}, { targetingKey: "u2" });
  await new Promise((done) => setTimeout(done, 30));
  delay = 0;
  await provider.onContextChange({}, { targetingKey: "u3" });
  flags = [flag("checkout", "wrong")];
  await slow;
  assert.equal(read(provider).value, "old");
  await provider.flush();
  const { body } = requests.find(({ path }) => path.includes("/assignments/"));
  assert.deepEqual(body.users.map(({ userId }) => userId), ["u3"]);
});

test("events wait for the service, whatever answers in between", async () => {
  const provider = made({ reportMs: 1 });
  await provider.initialize({ targetingKey: "u1" });
  read(provider);
  provider.track("order", { targetingKey: "u1" }, { value: 2, idempotencyKey: "order-1" });
  for (const status of [200, 302, 401, 500, 503]) {
    fail = status;
    assert.equal(await provider.flush(250), false);
  }
  fail = null;
  assert.equal(await provider.flush(5_000), true);
  const counters = provider.counters;
  assert.equal(counters.eventsSent, 1);
  assert.equal(counters.enrolmentsSent, 1);
  assert.ok(counters.attemptsFailed >= 5);
  const last = requests.findLast(({ path }) => path === "/api/events/batch");
  assert.deepEqual(last.body.events, [
    { userId: "u1", metric: "order", idempotencyKey: "order-1", value: 2 },
  ]);
  assert.ok(requests.every(({ path }) => path !== "/elsewhere"));
});

test("what cannot be sent is counted, and nothing throws", async () => {
  const provider = made({ queueSize: 1, shutdownMs: 50 });
  await provider.initialize({ targetingKey: "u1" });
  fail = 503;
  provider.track("a", {});
  provider.track("a", { targetingKey: "u1" }, { value: "x" });
  provider.track("a", { targetingKey: "u1" });
  provider.track("b", { targetingKey: "u1" });
  assert.throws(() => provider.resolveNumberEvaluation("checkout", 1, {}), { code: "TYPE_MISMATCH" });
  assert.throws(() => read(provider, "nope"), { code: "FLAG_NOT_FOUND" });
  await provider.onClose();
  const { eventsRefused, eventsQueued, eventsDropped, eventsWaiting } = provider.counters;
  assert.deepEqual([eventsRefused, eventsQueued, eventsDropped, eventsWaiting], [2, 1, 2, 0]);
});

// ---------------------------------------------------------------------------
// The end of a page

/** The storage of a page, whose entries are its own properties, as in a browser. */
class Stored {
  getItem(name) {
    return this[name];
  }
  setItem(name, text) {
    this[name] = text;
  }
  removeItem(name) {
    delete this[name];
  }
}

/** A page: the handlers at its window, and its end. */
const handlers = new Map();
const ends = () => handlers.get("pagehide")();
before(() => {
  globalThis.addEventListener = (name, handler) => handlers.set(name, handler);
  globalThis.removeEventListener = (name) => handlers.delete(name);
});
after(() => {
  delete globalThis.addEventListener;
  delete globalThis.removeEventListener;
});

const all = () => requests.filter(({ path }) => path === "/api/events/batch");

test("a page that ends sends an event in one request with the enrolment before it", async () => {
  const storage = new Stored();
  const provider = made({ reportMs: 600_000, storage });
  await provider.initialize({ targetingKey: "u1", plan: "pro" });
  read(provider);
  provider.track("order", { targetingKey: "u1" }, { idempotencyKey: "order-1" });
  ends();
  ends(); // nothing new
  assert.equal(Object.keys(storage).length, 1);
  assert.equal(await provider.flush(), true);
  assert.deepEqual(all().map(({ body }) => body), [{
    enrollments: [{ experiment: "exp_1", userId: "u1", attributes: { plan: "pro" } }],
    events: [{ userId: "u1", metric: "order", idempotencyKey: "order-1" }],
  }]);
  assert.equal(count("/assignments/"), 0);
  assert.equal(Object.keys(storage).length, 0);
  const { enrolmentsSent, eventsSent } = provider.counters;
  assert.deepEqual([enrolmentsSent, eventsSent], [1, 1]);
  await provider.onClose();
});

test("an event goes along though the answer to its enrolment has not come yet", async () => {
  const provider = made({ reportMs: 600_000 });
  await provider.initialize({ targetingKey: "u1" });
  read(provider);
  delay = 300;
  const flushed = provider.flush();
  provider.track("order", { targetingKey: "u1" });
  ends();
  while (all().length === 0) await new Promise((done) => setTimeout(done, 5));
  assert.equal(all()[0].body.enrollments.length, 1);
  assert.equal(provider.counters.enrolmentsWaiting, 1); // no answer is here yet
  await flushed;
  const { enrolmentsSent, eventsSent } = provider.counters;
  assert.deepEqual([enrolmentsSent, eventsSent], [1, 1]);
  await provider.onClose();
});

test("what a page could not send is sent by the next page, once", async () => {
  const storage = new Stored();
  storage.other = "{";
  storage["abacus-openfeature broken"] = "{";
  const first = made({ storage, shutdownMs: 50 });
  await first.initialize({ targetingKey: "u1" });
  fail = 503;
  read(first);
  first.track("order", { targetingKey: "u1" }, { idempotencyKey: "order-1" });
  ends();
  await first.onClose();
  assert.equal(first.counters.eventsDropped, 1);
  assert.equal(first.counters.enrolmentsDropped, 1);
  assert.ok(!JSON.stringify(storage).includes("Bearer"));
  fail = null;
  requests = [];
  const second = made({ storage });
  await second.initialize({ targetingKey: "u2" });
  assert.equal(await second.flush(), true);
  assert.equal(count("/api/experiments/exp_1/assignments/batch"), 1);
  assert.deepEqual(all().map(({ body }) => body.events), [
    [{ userId: "u1", metric: "order", idempotencyKey: "order-1" }],
  ]);
  assert.deepEqual(Object.keys(storage), ["other", "abacus-openfeature broken"]);
  await second.onClose();
});

test("the last request is as large as a browser lets it be, and the rest is kept", async () => {
  const storage = new Stored();
  const provider = made({ reportMs: 600_000, storage });
  await provider.initialize({ targetingKey: "u1" });
  read(provider);
  for (let n = 0; n < 450; n++) provider.track("é".repeat(100), { targetingKey: "u1" });
  ends();
  const [left] = Object.values(storage).map((text) => JSON.parse(text));
  assert.deepEqual([left.enrolments.length, left.events.length], [1, 450]);
  while (all().length === 0) await new Promise((done) => setTimeout(done, 5));
  const [{ headers, body }] = all();
  assert.ok(Number(headers["content-length"]) <= 60_000);
  assert.ok(body.events.length > 150);
  assert.equal(await provider.flush(), true);
  assert.equal(provider.counters.eventsSent, 450);
  await provider.onClose();
});

test("without a storage, or with a full one, a page works as before", async () => {
  const full = new Stored();
  full.setItem = () => {
    throw new Error("QuotaExceededError");
  };
  for (const storage of [null, full]) {
    const warnings = [];
    const warn = (message) => warnings.push(message);
    const provider = made({ storage, shutdownMs: 50, warn });
    await provider.initialize({ targetingKey: "u1" });
    fail = 503;
    provider.track("order", { targetingKey: "u1" });
    ends();
    await provider.onClose();
    assert.equal(provider.counters.eventsDropped, 1);
    assert.match(warnings.at(-1), /1 reports are lost/);
    fail = null;
  }
});
