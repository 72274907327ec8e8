import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import { AbacusProvider } from "../server.js";

/** Whatever may answer where the service should: a proxy, or a page to log in. */
const ANSWERS = [
  [200, "<html>Please log in</html>"],
  [200, "[]"],
  [200, '{"data": []}'],
  [302, ""],
  [400, "<html>Bad request</html>"],
  [404, "<html>Not found</html>"],
  [503, '{"error": {}}'],
];
let number = 0;
const seen = new Set();
const server = createServer((request, response) => {
  seen.add(`${request.url} ${request.headers.authorization}`);
  request.resume().on("end", () => {
    const [status, text] = ANSWERS[number++ % ANSWERS.length];
    response.writeHead(status, { Location: "/elsewhere" });
    response.end(text);
  });
});

before(() => new Promise((done) => server.listen(0, "127.0.0.1", done)));
after(() => server.close());

const user = { targetingKey: "u1" };
const made = (options) => {
  const warnings = [];
  const url = `http://127.0.0.1:${server.address().port}`;
  const warn = (message) => warnings.push(message);
  return [new AbacusProvider(url, () => "t", { shutdownMs: 0, warn, ...options }), warnings];
};

test("an answer that is not of the service loses no report", async () => {
  const [provider, warnings] = made({ reportMs: 1 });
  provider.track("conversion", user);
  number = 0;
  seen.clear();
  while (number < 14) assert.equal(await provider.flush(100), false);
  const counters = provider.counters;
  await provider.onClose();

  assert.deepEqual([...seen], ["/api/events/batch Bearer t"]);
  assert.equal(counters.eventsWaiting, 1);
  assert.equal(counters.eventsRefused + counters.eventsSent, 0);
  assert.ok(counters.attemptsFailed >= 13);
  assert.equal(provider.counters.eventsDropped, 1);
  const at = `Abacus: The service at http://127.0.0.1:${server.address().port}`;
  assert.deepEqual(warnings, [
    "Abacus: The answer is not JSON.",
    "Abacus: The answer is not a JSON object.",
    "Abacus: The answer is not one for each row.",
    `${at} answered 302.`,
    `${at} answered 503.`,
    "Abacus did not answer; 1 reports are lost.",
  ]);
});

test("an answer that is not of the service gives no flag", async () => {
  const [remote] = made();
  for (number = 0; number < 7; ) {
    await assert.rejects(remote.resolveStringEvaluation("checkout", "x", user), { code: "GENERAL" });
  }
  const [local, warnings] = made({ local: true });
  number = 0;
  await local.initialize();
  while (number < 7) assert.equal(await local.refresh(), false);
  await assert.rejects(local.resolveStringEvaluation("checkout", "x", user), {
    code: "PROVIDER_NOT_READY",
  });
  assert.equal(warnings.length, 1);
  await local.onClose();
});

test("a URL without a protocol is refused at once", () => {
  assert.throws(() => new AbacusProvider("127.0.0.1:8000", "t"), TypeError);
});
