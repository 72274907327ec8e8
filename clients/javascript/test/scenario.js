/**
 * What a test of a real service runs: one scenario, which prints a line of JSON.
 *
 * Arguments: the scenario, the address, the token, and options in JSON. A line on
 * standard input goes on where a scenario waits.
 */

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { OpenFeature } from "@openfeature/server-sdk";
import { OpenFeature as OpenFeatureWeb } from "@openfeature/web-sdk";

import { AbacusProvider } from "../server.js";
import { AbacusWebProvider } from "../web.js";

const [scenario, url, token, given = "{}"] = process.argv.slice(2);
const options = JSON.parse(given);
const warnings = [];
const warn = (message) => warnings.push(message);
const print = (value) => console.log(JSON.stringify(value));
const user = (targetingKey, attributes = {}) => ({ targetingKey, ...attributes });

const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const told = () => input.next();

async function provided(more = {}) {
  const provider = new AbacusProvider(url, token, {
    refreshMs: 600_000, reportMs: 600_000, warn, ...options, ...more,
  });
  await OpenFeature.setProviderAndWait(provider);
  return [provider, OpenFeature.getClient()];
}

async function webProvided(targetingKey, more = {}) {
  const provider = new AbacusWebProvider(url, token, { pollMs: 0, warn, ...options, ...more });
  await OpenFeatureWeb.setContext(user(targetingKey));
  await OpenFeatureWeb.setProviderAndWait(provider);
  return [provider, OpenFeatureWeb.getClient()];
}

const shown = (details) => ({
  value: details.value,
  reason: details.reason,
  variant: details.variant,
  metadata: details.flagMetadata,
  error: details.errorCode,
});

const scenarios = {
  /** The variants of 1,000 users, each asked for three times. */
  async users() {
    const [provider, client] = await provided();
    const variants = {};
    for (let round = 0; round < 3; round++) {
      for (let n = 0; n < 1_000; n++) {
        const details = await client.getStringDetails("checkout", "default", user(`user-${n}`));
        variants[`user-${n}`] = details.variant;
      }
    }
    const before = provider.counters;
    const isFlushed = await provider.flush();
    print({ variants, before, counters: provider.counters, isFlushed, warnings });
  },

  /** The details of the cases that the options have. */
  async cases() {
    const { cases, ...rest } = options;
    delete options.cases;
    const [provider, client] = await provided(rest);
    const found = [];
    for (const [key, type, context] of cases) {
      const ask = {
        string: () => client.getStringDetails(key, "default", context),
        object: () => client.getObjectDetails(key, { default: true }, context),
        boolean: () => client.getBooleanDetails(key, true, context),
        number: () => client.getNumberDetails(key, 7, context),
      }[type];
      found.push(shown(await ask()));
    }
    await provider.flush();
    print({ found, warnings });
  },

  /** Users who are enrolled and convert while the service goes and comes back. */
  async outage() {
    const [provider, client] = await provided({ reportMs: 10, timeoutMs: 2_000 });
    let defaults = 0;
    for (let n = 0; n < 3_000; n++) {
      if (n % 500 === 0 && n > 0) {
        print(n);
        await told();
      }
      const context = user(`user-${n}`);
      const details = await client.getStringDetails("checkout", "default", context);
      if (details.value === "default") defaults++;
      client.track("conversion", context);
      client.track("order", context, { value: 0.25 });
      if (n % 10 === 0) await sleep(2); // the sender has its turn, as between page views
    }
    print({ isFlushed: await provider.flush(60_000), counters: provider.counters, defaults });
  },

  /** An evaluation and an event before the service is back, and after it. */
  async away() {
    const [provider, client] = await provided({ timeoutMs: 1_000, shutdownMs: 10_000 });
    const first = shown(await client.getStringDetails("checkout", "default", user("u1")));
    client.track("conversion", user("u1"));
    print(first);
    await told();
    const isRefreshed = !options.local || (await provider.refresh());
    const later = shown(await client.getStringDetails("checkout", "default", user("u1")));
    print({ isRefreshed, later, isFlushed: await provider.flush(30_000), counters: provider.counters });
  },

  /** A hundred values of a flag that cannot be had, and an event. */
  async failing() {
    const isWeb = options.kind === "web";
    const [provider, client] = isWeb ? await webProvided("u1") : await provided();
    const values = new Set();
    for (let n = 0; n < 100; n++) {
      values.add(await client.getStringValue(options.key, "default", user(`u${n}`)));
    }
    provider.track("conversion", user("u1"));
    await provider.flush(500);
    print({ values: [...values], warnings, counters: provider.counters });
    await provider.onClose();
  },

  /** Everything that an application may do wrong; nothing throws. */
  async wrong() {
    const [provider, client] = await provided();
    await client.getStringDetails("checkout", "default", user("u1"));
    for (const context of [undefined, user(""), user("null"), user("\ud800"), user(7)]) {
      provider.track("conversion", context);
    }
    client.track("conversion", user("u1"), { value: "x" });
    client.track("conversion", user("u1"), { value: Number.NaN });
    client.track("x".repeat(300), user("u1"));
    for (let n = 0; n < 3; n++) {
      client.track("order", user("u1"), { value: 2, idempotencyKey: "order-1" });
    }
    const isFlushed = await provider.flush();
    print({ isFlushed, counters: provider.counters });
  },

  /** A queue that is full. */
  async full() {
    const [provider, client] = await provided({ queueSize: 10 });
    const visit = (n) => client.getStringDetails("checkout", "default", user(`u${n}`));
    for (let n = 0; n < 25; n++) {
      await visit(n);
      client.track("conversion", user(`u${n}`));
    }
    const counters = provider.counters;
    await provider.flush();
    for (const start of [10, 20]) {
      for (let n = start; n < start + 10 && n < 25; n++) await visit(n);
      await provider.flush();
    }
    print({ counters, later: provider.counters });
  },

  /** Imported users, whom the service has put elsewhere: the variants before and after. */
  async follow() {
    const [provider, client] = await provided();
    const ask = async () => {
      const details = await client.getStringDetails("checkout", "default", user(options.user));
      return details.variant;
    };
    const first = await ask();
    await provider.flush();
    print({ first, later: await ask() });
  },

  /** Ends without closing anything: what waits is sent all the same. */
  async end() {
    const [, client] = await provided();
    await client.getStringDetails("checkout", "default", user("u1"));
    client.track("conversion", user("u1"));
  },

  /** The median microseconds of a local decision, the best of some rounds. */
  async speed() {
    const [provider, client] = await provided({ local: true });
    const contexts = (round) =>
      Array.from({ length: 20_000 }, (_, n) =>
        user(`user-${round}-${n}`, { plan: "pro", country: "DE", age: 30 }),
      );
    const median = async (ask, users) => {
      const taken = [];
      for (const context of users) {
        const began = process.hrtime.bigint();
        await ask(context);
        taken.push(Number(process.hrtime.bigint() - began) / 1_000);
      }
      return Number(taken.sort((one, other) => one - other)[taken.length / 2].toFixed(2));
    };
    const resolve = (context) => provider.resolveStringEvaluation("checkout", "default", context);
    const through = (context) => client.getStringDetails("checkout", "x", context);
    const rounds = { first: [], later: [], through: [] };
    for (let round = 0; round < 4; round++) {
      const users = contexts(round);
      rounds.first.push(await median(resolve, users));
      rounds.later.push(await median(resolve, users));
      rounds.through.push(await median(through, users));
    }
    const best = Object.entries(rounds).map(([name, medians]) => [name, Math.min(...medians)]);
    print(Object.fromEntries(best));
  },

  /** A million decisions of 100,000 users. */
  async million() {
    const [provider] = await provided({ local: true, reportMs: 200 });
    const began = Date.now();
    for (let round = 0; round < 10; round++) {
      for (let n = 0; n < 100_000; n++) {
        await provider.resolveStringEvaluation("checkout", "default", user(`user-${n}`));
        if (n % 5_000 === 0) await sleep(0);
      }
    }
    const seconds = (Date.now() - began) / 1_000;
    print({ seconds, isFlushed: await provider.flush(120_000), counters: provider.counters });
  },

  /** Pages of a browser: all flags are fetched, and one is read. */
  async web() {
    const [provider, client] = await webProvided("web-0");
    const variants = {};
    for (let n = 0; n < 50; n++) {
      await OpenFeatureWeb.setContext(user(`web-${n}`));
      if (n >= 25) continue; // a page that shows nothing of the experiment
      for (let round = 0; round < 3; round++) {
        variants[`web-${n}`] = client.getStringDetails("checkout", "default").variant;
      }
      client.track("conversion");
    }
    const isFlushed = await provider.flush();
    print({ variants, isFlushed, counters: provider.counters });
  },

  /** A page whose service is away, comes back, and changes. */
  async webAway() {
    const [provider, client] = await webProvided("u1", { timeoutMs: 1_000, pollMs: options.pollMs ?? 0 });
    const ask = () => shown(client.getStringDetails("checkout", "default"));
    const first = ask();
    client.track("conversion");
    print(first);
    await told();
    const isRefreshed = await provider.refresh();
    const later = ask();
    print({ isRefreshed, later, isFlushed: await provider.flush(30_000) });
  },
};

await scenarios[scenario]();
if (scenario !== "end") {
  await OpenFeature.close();
  await OpenFeatureWeb.close();
}
process.stdin.destroy();
