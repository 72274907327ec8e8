/**
 * A page with one article. The label of its button is a flag, and orders are events.
 *
 *     ABACUS_TOKEN=... node page.js
 *
 * The server decides by itself, and counts the orders. The page in the browser reads the
 * flag too, and reports the clicks. Each visitor has a random id in a cookie.
 */

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

import { OpenFeature } from "@openfeature/server-sdk";
import { AbacusProvider } from "abacus-openfeature/server";

const PRICE = 20;
const url = process.env.ABACUS_URL ?? "http://127.0.0.1:8000";
const token = process.env.ABACUS_TOKEN; // the page shows it, so its scope is `assign` alone
const cacheFile = process.env.ABACUS_CACHE ?? "abacus-definitions.json";
const provider = new AbacusProvider(url, token, { local: true, cacheFile });
const flags = OpenFeature.getClient();
const labels = new Map(); // the shop's own book: the label that each visitor saw,
const orders = new Map(); // the visitor of each order,
const clicks = []; // and the visitor of each click in a browser
let isWaiting = false; // whether the browser waits for Abacus to be away

const MODULES = {
  "/web-sdk.js": import.meta.resolve("@openfeature/web-sdk"),
  "/core.js": import.meta.resolve("@openfeature/core"),
};

const page = (visitor, label) => `<!doctype html><title>Shop</title><h1>An abacus, 20 €</h1>
<form method="post" action="/orders"><input type="hidden" name="browser">
<input type="hidden" name="order" value="${randomUUID()}"><button>${label}</button></form>
<script type="importmap">{"imports": {
  "@openfeature/core": "/core.js", "@openfeature/web-sdk": "/web-sdk.js"
}}</script><script type="module">
import { OpenFeature } from "@openfeature/web-sdk";
import { AbacusWebProvider } from "/abacus/web.js";
const { form, form: { elements: { browser } } } = document.querySelector("button");
await OpenFeature.setContext({ targetingKey: "${visitor}" });
await OpenFeature.setProviderAndWait(new AbacusWebProvider("${url}", "${token}"));
const flags = OpenFeature.getClient();
browser.value = flags.getStringValue("buy-button", "");
form.onsubmit = () => {
  if (browser.value) flags.track("click"); // and the page is left at once
};
document.body.dataset.state = "ready";
</script>`;

/** What a browser does that visits the shop, once by itself and once while Abacus is away. */
const WALK = `<!doctype html><title>Walk</title><iframe></iframe><script type="module">
const frame = document.querySelector("iframe");
const loaded = () => new Promise((resolve) => { frame.onload = resolve; });
const until = async (holds) => {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 50));
};
const answers = () => fetch("${url}/healthz", { mode: "no-cors" }).then(() => true, () => false);
for (let visit = 1; visit <= 12; visit++) {
  frame.src = "/?new";
  await loaded();
  await until(() => frame.contentDocument.body.dataset.state === "ready");
  if (visit === 11) {
    await fetch("/walk", { method: "POST" }); // now Abacus may go away
    await until(async () => !(await answers()));
  }
  const isLeft = loaded();
  frame.contentDocument.querySelector("button").click();
  await isLeft;
  if (visit === 11) await until(answers);
}
</script>`;

/** Show the button, with the label of the visitor's variant. */
async function article(request, response) {
  const isNew = request.url === "/?new";
  const visitor = (!isNew && visitorOf(request)) || randomUUID();
  const label = await flags.getStringValue("buy-button", "Buy", { targetingKey: visitor });
  labels.set(visitor, label);
  response.setHeader("Set-Cookie", `visitor=${visitor}; HttpOnly; SameSite=Lax`);
  return page(visitor, label);
}

/** Take an order. A second click sends the same number, which counts once. */
async function order(request) {
  let text = "";
  for await (const part of request) text += part;
  const form = new URLSearchParams(text);
  const [visitor, number] = [visitorOf(request), form.get("order")];
  if (!labels.has(visitor)) return "Please look at the article first.";
  if (form.get("browser")) clicks.push(visitor);
  if (!orders.has(number)) orders.set(number, visitor);
  if (orders.get(number) === visitor) {
    const details = { value: PRICE, idempotencyKey: number };
    flags.track("purchase", { targetingKey: visitor }, details);
  }
  return "<!doctype html>Thank you.";
}

/** Return what the shop has counted by itself, to be compared with Abacus. */
function book() {
  const { enrolmentsWaiting, eventsWaiting } = provider.counters;
  return JSON.stringify({
    visitors: counted([...labels.keys()]),
    buyers: counted(new Set(orders.values())),
    orders: counted(orders.values()),
    clicks: counted(clicks),
    isWaiting,
    waiting: enrolmentsWaiting + eventsWaiting,
    counters: provider.counters,
  });
}

/** Return how many of these visitors saw each label. */
function counted(visitors) {
  const counts = {};
  for (const visitor of visitors) {
    const label = labels.get(visitor);
    counts[label] = (counts[label] ?? 0) + 1;
  }
  return counts;
}

const visitorOf = ({ headers }) => /visitor=([\w-]+)/.exec(headers.cookie ?? "")?.[1];

/** Return a module of the page: of OpenFeature, or of Abacus. */
function script(path, response) {
  response.setHeader("Content-Type", "text/javascript");
  const [, own] = /^\/abacus\/([a-z0-9]+\.js)$/.exec(path) ?? [];
  return readFile(new URL(own ? `../${own}` : MODULES[path], import.meta.url));
}

/** Return what a request is answered, or undefined if there is nothing. */
function answer(request, response) {
  const [path] = request.url.split("?");
  response.setHeader("Content-Type", "text/html; charset=utf-8");
  if (path === "/orders" && request.method === "POST") return order(request);
  if (path === "/") return article(request, response);
  if (path === "/book") return book();
  if (path === "/walk") {
    isWaiting ||= request.method === "POST";
    return WALK;
  }
  if (path.startsWith("/abacus/") || path in MODULES) return script(path, response);
  return undefined;
}

const server = createServer(async (request, response) => {
  const text = await answer(request, response);
  response.statusCode = text === undefined ? 404 : 200;
  response.end(text);
});

process.once("SIGTERM", async () => {
  server.close();
  server.closeAllConnections();
  await OpenFeature.close(); // sends the last reports
});
await OpenFeature.setProviderAndWait(provider);
server.listen(Number(process.env.PORT ?? 5000), "127.0.0.1");
