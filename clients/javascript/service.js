/** Requests to Abacus, each with a time limit, and without redirects. */

/** The service did not answer, or asks to be asked again later. */
export class Unavailable extends Error {
  /** @param {string} message @param {number} [retryAfter] milliseconds */
  constructor(message, retryAfter = 0) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

/** The service answered that the request is wrong, and would do so again. */
export class Refused extends Error {
  /** @param {number} status @param {any} body */
  constructor(status, body) {
    super(`The service answered ${status}: ${JSON.stringify(body)}`);
    this.status = status;
    this.body = body;
  }
}

const PASSES = [401, 403, 408, 425, 429]; // a token may be renewed
const HINTS = {
  401: ": the token is wrong or has expired",
  403: ": the token has no scope `assign`",
};
// Browsers allow 64 KiB of the bodies that outlive a page, and the page may have others.
const KEPT_ALIVE = 60_000;

export const UNANSWERED = " does not answer: "; // before the cause

/** The service at a URL. */
export class Service {
  #token;
  #timeout;
  #ahead = 0;
  #keptAlive = 0; // bytes on their way

  /**
   * @param {string} url
   * @param {string | (() => string | Promise<string>)} token
   * @param {number} timeout milliseconds
   * @param {boolean} [keepAlive] whether a request outlives its page
   */
  constructor(url, token, timeout, keepAlive = false) {
    if (!/^https?:\/\//.test(url)) throw new TypeError(`${url} is not the URL of a service.`);
    this.url = url.replace(/\/+$/, "");
    this.#token = token;
    this.#timeout = timeout;
    this.keepAlive = keepAlive;
  }

  /** How many bytes a request may have now, to outlive its page. */
  get room() {
    return this.keepAlive ? KEPT_ALIVE - this.#keptAlive : 0;
  }

  /** Return the milliseconds since 1970 by the clock of the service, as known. */
  now() {
    return Date.now() + this.#ahead;
  }

  /**
   * Return the JSON object that the service answers to this body.
   *
   * @param {string} path
   * @param {any} body
   */
  async post(path, body) {
    return object((await this.ask("POST", path, JSON.stringify(body))).text);
  }

  /**
   * Return a good answer, or 304; else throw Unavailable or Refused.
   *
   * @param {string} method
   * @param {string} path
   * @param {string} [body]
   * @param {string} [tag] an ETag with its quotes
   */
  async ask(method, path, body, tag) {
    let answer;
    let text;
    let kept = body === undefined ? 0 : bytesOf(body);
    if (kept > this.room) kept = 0;
    this.#keptAlive += kept;
    try {
      const token = typeof this.#token === "string" ? this.#token : await this.#token();
      const headers = { Authorization: `Bearer ${token}` };
      if (body !== undefined) headers["Content-Type"] = "application/json";
      if (tag) headers["If-None-Match"] = tag;
      answer = await fetch(this.url + path, {
        method,
        headers,
        body,
        redirect: "manual", // another host must not get the token
        keepalive: kept > 0,
        signal: AbortSignal.timeout(this.#timeout),
      });
      text = await answer.text();
    } catch (error) {
      const { message, code } = error?.cause ?? error ?? {};
      throw new Unavailable(`The service at ${this.url}${UNANSWERED}${message || code}`);
    } finally {
      this.#keptAlive -= kept;
    }
    this.#noteTime(answer.headers.get("Date"));
    const { status } = answer;
    if (answer.ok || status === 304) {
      return { status, text, tag: answer.headers.get("ETag") ?? undefined };
    }
    if (status < 400 || status >= 500 || PASSES.includes(status)) {
      const seconds = answer.headers.get("Retry-After") ?? "";
      const retryAfter = /^[0-9]{1,6}$/.test(seconds) ? Number(seconds) * 1000 : 0;
      const answered = `The service at ${this.url} answered ${status}${HINTS[status] ?? ""}.`;
      throw new Unavailable(answered, retryAfter);
    }
    throw new Refused(status, object(text));
  }

  #noteTime(date) {
    const there = Date.parse(date ?? "");
    if (Number.isNaN(there)) return;
    const ahead = there - Date.now();
    this.#ahead = Math.abs(ahead) > 2000 ? ahead : 0; // a date has whole seconds
  }
}

/** Return how long a text is in UTF-8. */
export const bytesOf = (text) => new TextEncoder().encode(text).length;

/** Return a JSON object; whoever answers something else is not the service. */
export function object(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Unavailable("The answer is not JSON.");
  }
  if (typeof found !== "object" || found === null || Array.isArray(found)) {
    throw new Unavailable("The answer is not a JSON object.");
  }
  return found;
}
