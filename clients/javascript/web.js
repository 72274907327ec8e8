/** The OpenFeature provider for browsers: all flags at once by OFREP, enrolled when read. */

import {
  FlagNotFoundError,
  InvalidContextError,
  OpenFeatureEventEmitter,
  ProviderEvents,
  ProviderNotReadyError,
  TargetingKeyMissingError,
  TypeMismatchError,
} from "@openfeature/web-sdk";

import { isUserId } from "./decider.js";
import { attributesOf, evaluation, eventOf } from "./flags.js";
import { Outbox } from "./outbox.js";
import { Service, Unavailable, object } from "./service.js";

const DEFAULTS = {
  pollMs: 60_000,
  reportMs: 100,
  timeoutMs: 5_000,
  queueSize: 1_000,
  shutdownMs: 2_000,
  storage: undefined, // that of the page
  warn: (message) => console.warn(message),
};

/** A provider that enrols a user in an experiment when its flag is read first. */
export class AbacusWebProvider {
  metadata = { name: "Abacus" };
  runsOn = "client";
  events = new OpenFeatureEventEmitter();

  #options;
  #service;
  #outbox;
  #context = {};
  /** @type {Map<string, any> | null} */
  #flags = null;
  #tag = undefined;
  #reported = new Set(); // ids of the experiments that this user was reported to
  #turn = 0; // of the latest request for all flags
  #timer = undefined;
  #isOpen = false;
  #isStale = false;
  #onVisibility = () => this.#seen();
  #onEnd = () => this.#outbox.leave();

  /**
   * @param {string} url the address of the service
   * @param {string | (() => string | Promise<string>)} token with the scope `assign`
   * @param {Partial<typeof DEFAULTS>} [options]
   */
  constructor(url, token, options = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#options.storage ??= options.storage === null ? null : ownStorage();
    this.#service = new Service(url, token, this.#options.timeoutMs, true);
    this.#outbox = new Outbox(this.#service, this.#follow.bind(this), this.#options);
  }

  /** Ask for all flags. Without an answer, all flags have their defaults for now. */
  async initialize(context = {}) {
    this.#outbox.open();
    this.#isOpen = true;
    // At the window, so that what the page tracks in handlers of its document goes along.
    globalThis.addEventListener?.("visibilitychange", this.#onVisibility);
    globalThis.addEventListener?.("pagehide", this.#onEnd);
    await this.#change(context);
    this.#schedule(this.#options.pollMs);
  }

  /** Ask for all flags of the new context. */
  async onContextChange(_before, context) {
    await this.#change(context);
  }

  /** Send what waits, for some seconds at most, and poll no more. */
  async onClose() {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    globalThis.removeEventListener?.("visibilitychange", this.#onVisibility);
    globalThis.removeEventListener?.("pagehide", this.#onEnd);
    await this.#outbox.close(this.#options.shutdownMs);
  }

  /**
   * Send what waits now; tell whether the service has it within this time.
   *
   * @param {number} [ms]
   */
  flush(ms = 5_000) {
    return this.#outbox.flush(ms);
  }

  /** Ask for all flags now; tell whether the service answered. */
  async refresh() {
    try {
      const isNew = await this.#fetch();
      this.#notice(true, isNew);
      return true;
    } catch (error) {
      this.#notice(false, false);
      return false;
    }
  }

  /** How much was queued, sent, refused, dropped, and is waiting. */
  get counters() {
    return this.#outbox.counters;
  }

  async #change(context) {
    if (context.targetingKey !== this.#context.targetingKey) {
      this.#reported = new Set();
      this.#flags = null; // another user must not see them
    }
    this.#context = context;
    this.#tag = undefined;
    if (!isUserId(context.targetingKey)) {
      this.#turn++;
      this.#flags = null;
      return; // until the application knows its user, the defaults hold
    }
    try {
      await this.#fetch();
      this.#isStale = false;
    } catch (error) {
      this.#isStale = true;
      this.#options.warn(`Abacus does not answer yet: ${error.message}`);
    }
  }

  /** Ask for all flags; tell whether they have changed. The last good ones stay. */
  async #fetch() {
    const turn = ++this.#turn;
    const { targetingKey } = this.#context;
    if (!isUserId(targetingKey)) return false;
    const body = JSON.stringify({ context: { ...attributesOf(this.#context), targetingKey } });
    const answer = await this.#service.ask("POST", "/ofrep/v1/evaluate/flags", body, this.#tag);
    if (turn !== this.#turn || answer.status === 304) return false;
    const { flags } = object(answer.text);
    if (!Array.isArray(flags)) throw new Unavailable("The answer has no flags.");
    this.#flags = new Map(flags.map((flag) => [flag.key, flag]));
    this.#tag = answer.tag;
    return true;
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    if (!this.#isOpen || !this.#options.pollMs) return;
    this.#timer = setTimeout(async () => {
      if (globalThis.document?.visibilityState !== "hidden") await this.refresh();
      this.#schedule(this.#options.pollMs);
    }, ms * (0.8 + Math.random() * 0.4));
    this.#timer.unref?.();
  }

  /** Send what waits when the page is hidden, which may be its end; refresh when it is back. */
  #seen() {
    if (globalThis.document.visibilityState === "hidden") this.#outbox.leave();
    else void this.refresh();
  }

  #notice(isGood, isNew) {
    if (!this.#isOpen) return;
    if (isGood === this.#isStale) {
      this.#isStale = !isGood;
      this.events.emit(isGood ? ProviderEvents.Ready : ProviderEvents.Stale, {});
    }
    if (isNew) this.events.emit(ProviderEvents.ConfigurationChanged, {});
  }

  // -------------------------------------------------------------------------
  // Events

  /**
   * Report an event to every experiment of its user, in the background.
   *
   * This never throws. The event has the `idempotencyKey` of the details, or its own.
   */
  track(name, context, details) {
    try {
      const event = eventOf(name, context, details);
      this.#outbox.report(event, new Date(this.#service.now()).toISOString());
    } catch (error) {
      this.#outbox.refuseEvent();
      this.#options.warn(`An event is not reported: ${error.message}`);
    }
  }

  // -------------------------------------------------------------------------
  // Flags

  resolveBooleanEvaluation(key, defaultValue, context) {
    return this.#resolve(key, defaultValue, context, "boolean");
  }

  resolveStringEvaluation(key, defaultValue, context) {
    return this.#resolve(key, defaultValue, context, "string");
  }

  resolveNumberEvaluation(key, defaultValue, context) {
    return this.#resolve(key, defaultValue, context, "number");
  }

  resolveObjectEvaluation(key, defaultValue, context) {
    return this.#resolve(key, defaultValue, context, "object");
  }

  #resolve(key, defaultValue, context, type) {
    const { targetingKey } = this.#context;
    if (!targetingKey) throw new TargetingKeyMissingError("The context has no targeting key.");
    if (!isUserId(targetingKey)) {
      throw new InvalidContextError("The targeting key is not the id of a user.");
    }
    if (this.#flags === null) throw new ProviderNotReadyError("There are no flags yet.");
    const flag = this.#flags.get(key);
    if (flag === undefined) throw new FlagNotFoundError(`There is no flag ${key}.`);
    const found = evaluation(flag, defaultValue, type, TypeMismatchError);
    // A copy, because the application may change it.
    if (flag.value === found.value && type === "object") found.value = structuredClone(flag.value);
    if (flag.reason === "SPLIT") this.#enrol(flag.metadata?.experimentId);
    return found;
  }

  /** Report the user to the experiment of a flag that is read, once. */
  #enrol(experimentId) {
    if (experimentId === undefined || this.#reported.has(experimentId)) return;
    const { targetingKey: userId } = this.#context;
    const attributes = attributesOf(this.#context);
    if (this.#outbox.enrol({ experimentId, userId, attributes })) this.#reported.add(experimentId);
  }

  /** Ask for all flags again if the service has enrolled the user otherwise. */
  #follow(experimentId, decisions) {
    const shown = [...(this.#flags?.values() ?? [])].find(
      (flag) => flag.metadata?.experimentId === experimentId,
    );
    const own = decisions.filter(({ userId }) => userId === this.#context.targetingKey);
    const isOther = own.some(({ variantId }) => shown && variantId !== shown.variant);
    if (isOther && this.#isOpen) void this.refresh();
  }
}

/** Return the storage of the page, or null where there is none or it is forbidden. */
function ownStorage() {
  try {
    return globalThis.localStorage ?? null;
  } catch {
    return null;
  }
}
