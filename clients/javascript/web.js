/** The OpenFeature provider for browsers: all flags at once by OFREP, enrolled when read. */

import { FlagNotFoundError, OpenFeatureEventEmitter, ProviderNotReadyError } from "@openfeature/web-sdk";

import { isUserId } from "./decider.js";
import { attributesOf, evaluation } from "./flags.js";
import { BaseProvider, userOf } from "./provider.js";
import { Unavailable, object } from "./service.js";

const DEFAULTS = {
  pollMs: 60_000,
  reportMs: 100,
  timeoutMs: 5_000,
  queueSize: 1_000,
  shutdownMs: 2_000,
  warn: (message) => console.warn(message),
};

/** A provider that enrols a user in an experiment when its flag is read first. */
export class AbacusWebProvider extends BaseProvider {
  runsOn = "client";
  events = new OpenFeatureEventEmitter();

  #context = {};
  /** @type {Map<string, any> | null} */
  #flags = null;
  #tag = undefined;
  #reported = new Set(); // ids of the experiments that this user was reported to
  #turn = 0; // of the latest request for all flags
  #timer = undefined;
  #onVisibility = () => this.#seen();
  #onEnd = () => this._outbox.leave();

  /**
   * @param {string} url the address of the service
   * @param {string | (() => string | Promise<string>)} token with the scope `assign`
   * @param {Partial<typeof DEFAULTS> & {storage?: Storage | null}} [options]
   */
  constructor(url, token, options = {}) {
    const { storage = ownStorage() } = options;
    super(url, token, { ...DEFAULTS, ...options, storage }, true);
  }

  /** Ask for all flags. Without an answer, all flags have their defaults for now. */
  async initialize(context = {}) {
    this._outbox.open();
    this._isOpen = true;
    // At the window, so that what the page tracks in handlers of its document goes along.
    globalThis.addEventListener?.("visibilitychange", this.#onVisibility);
    globalThis.addEventListener?.("pagehide", this.#onEnd);
    await this.#change(context);
    this.#schedule(this._options.pollMs);
  }

  /** Ask for all flags of the new context. */
  async onContextChange(_before, context) {
    await this.#change(context);
  }

  /** Send what waits, for some seconds at most, and poll no more. */
  async onClose() {
    this._isOpen = false;
    clearTimeout(this.#timer);
    globalThis.removeEventListener?.("visibilitychange", this.#onVisibility);
    globalThis.removeEventListener?.("pagehide", this.#onEnd);
    await this._outbox.close(this._options.shutdownMs);
  }

  /** Ask for all flags now; tell whether the service answered. */
  async refresh() {
    try {
      const isNew = await this.#fetch();
      this._notice(true, isNew);
      return true;
    } catch (error) {
      this._warn(error);
      this._notice(false, false);
      return false;
    }
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
      this._isStale = false;
    } catch (error) {
      this._isStale = true;
      this._warn(error);
    }
  }

  /** Ask for all flags; tell whether they have changed. The last good ones stay. */
  async #fetch() {
    const turn = ++this.#turn;
    const { targetingKey } = this.#context;
    if (!isUserId(targetingKey)) return false;
    const body = JSON.stringify({ context: { ...attributesOf(this.#context), targetingKey } });
    const answer = await this._service.ask("POST", "/ofrep/v1/evaluate/flags", body, this.#tag);
    if (turn !== this.#turn || answer.status === 304) return false;
    const { flags } = object(answer.text);
    if (!Array.isArray(flags)) throw new Unavailable("The answer has no flags.");
    this.#flags = new Map(flags.map((flag) => [flag.key, flag]));
    this.#tag = answer.tag;
    return true;
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    if (!this._isOpen || !this._options.pollMs) return;
    this.#timer = setTimeout(async () => {
      if (globalThis.document?.visibilityState !== "hidden") await this.refresh();
      this.#schedule(this._options.pollMs);
    }, ms * (0.8 + Math.random() * 0.4));
    this.#timer.unref?.();
  }

  /** Send what waits when the page is hidden, which may be its end; refresh when it is back. */
  #seen() {
    if (globalThis.document.visibilityState === "hidden") this._outbox.leave();
    else void this.refresh();
  }

  // -------------------------------------------------------------------------
  // Flags

  _resolve(key, defaultValue, context, type) {
    try {
      return this.#resolved(key, defaultValue, type);
    } catch (error) {
      this._warn(error);
      throw error;
    }
  }

  #resolved(key, defaultValue, type) {
    userOf(this.#context);
    if (this.#flags === null) throw new ProviderNotReadyError("There are no flags yet.");
    const flag = this.#flags.get(key);
    if (flag === undefined) throw new FlagNotFoundError(`There is no flag '${key}'.`);
    const found = evaluation(flag, defaultValue, type);
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
    if (this._outbox.enrol({ experimentId, userId, attributes })) this.#reported.add(experimentId);
  }

  /** Ask for all flags again if the service has enrolled the user otherwise. */
  _follow(experimentId, decisions) {
    const shown = [...(this.#flags?.values() ?? [])].find(
      (flag) => flag.metadata?.experimentId === experimentId,
    );
    const own = decisions.filter(({ userId }) => userId === this.#context.targetingKey);
    const isOther = own.some(({ variantId }) => shown && variantId !== shown.variant);
    if (isOther && this._isOpen) void this.refresh();
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
