/** What the providers for servers and for browsers share. */

import {
  InvalidContextError,
  ServerProviderEvents as ProviderEvents,
  TargetingKeyMissingError,
} from "@openfeature/core";

import { isUserId } from "./decider.js";
import { eventOf } from "./flags.js";
import { Outbox } from "./outbox.js";
import { Service, UNANSWERED } from "./service.js";

const AGAIN_MS = 600_000; // until a warning is repeated
const WARNINGS = 1_000; // that are remembered

/** A provider but for its flags. Names with `_` are for the classes that extend it. */
export class BaseProvider {
  metadata = { name: "Abacus" };
  _isOpen = false;
  _isStale = false;

  /**
   * @param {string} url the address of the service
   * @param {string | (() => string | Promise<string>)} token with the scope `assign`
   * @param {any} options
   * @param {boolean} [keepAlive] whether a request outlives its page
   */
  constructor(url, token, options, keepAlive) {
    this._options = { ...options, warn: sparing(options.warn) };
    this._service = new Service(url, token, options.timeoutMs, keepAlive);
    this._outbox = new Outbox(this._service, this._follow.bind(this), this._options);
  }

  /**
   * Send what waits now; tell whether the service has it within this time.
   *
   * @param {number} [ms]
   */
  flush(ms = 5_000) {
    return this._outbox.flush(ms);
  }

  /** How much was queued, sent, refused, dropped, and is waiting. */
  get counters() {
    return this._outbox.counters;
  }

  /**
   * Report an event to every experiment of its user, in the background.
   *
   * This never throws. The event has the `idempotencyKey` of the details, or its own.
   */
  track(name, context, details) {
    try {
      const event = eventOf(name, context, details);
      this._outbox.report(event, new Date(this._service.now()).toISOString());
    } catch (error) {
      this._outbox.refuseEvent();
      this._options.warn(`An event is not reported: ${error.message}`);
    }
  }

  resolveBooleanEvaluation(key, defaultValue, context) {
    return this._resolve(key, defaultValue, context, "boolean");
  }

  resolveStringEvaluation(key, defaultValue, context) {
    return this._resolve(key, defaultValue, context, "string");
  }

  resolveNumberEvaluation(key, defaultValue, context) {
    return this._resolve(key, defaultValue, context, "number");
  }

  resolveObjectEvaluation(key, defaultValue, context) {
    return this._resolve(key, defaultValue, context, "object");
  }

  /** Tell OpenFeature's handlers what a refresh has changed. */
  _notice(isGood, isNew) {
    if (!this._isOpen) return;
    if (isGood === this._isStale) {
      this._isStale = !isGood;
      this.events.emit(isGood ? ProviderEvents.Ready : ProviderEvents.Stale, {});
    }
    if (isNew) this.events.emit(ProviderEvents.ConfigurationChanged, {});
  }

  /** Say why a flag has its default. What keeps a provider from being ready was said before. */
  _warn(error) {
    if (error.code !== "PROVIDER_NOT_READY") this._options.warn(`Abacus: ${error.message}`);
  }
}

/** Return the id of the user, or throw. */
export function userOf(context) {
  const userId = context?.targetingKey;
  if (userId === undefined || userId === null || userId === "") {
    throw new TargetingKeyMissingError("The context has no targeting key.");
  }
  if (!isUserId(userId)) throw new InvalidContextError("The targeting key is not the id of a user.");
  return userId;
}

/** Return a function that warns, and of the same thing again only after ten minutes. */
function sparing(warn) {
  const last = new Map();
  return (message) => {
    const now = Date.now();
    // A service that ends resets connections, and then refuses them.
    const [same] = message.split(UNANSWERED);
    if (now - last.get(same) < AGAIN_MS) return;
    if (last.size >= WARNINGS) last.clear();
    last.set(same, now);
    warn(message);
  };
}
