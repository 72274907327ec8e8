/** The OpenFeature provider for servers: remote by OFREP, or local with the definitions. */

import { randomUUID } from "node:crypto";
import { open, readFile, rename, unlink } from "node:fs/promises";

import {
  FlagNotFoundError,
  GeneralError,
  InvalidContextError,
  OpenFeatureEventEmitter,
  ProviderNotReadyError,
  TargetingKeyMissingError,
} from "@openfeature/server-sdk";

import { AskService, Definitions, EXISTING, NEW, OVERRIDE } from "./decider.js";
import { CONFIG, NOT_ENROLLED, attributesOf, evaluation } from "./flags.js";
import { Memory } from "./memory.js";
import { BaseProvider, userOf } from "./provider.js";
import { Refused, Unavailable } from "./service.js";

// Every other decision has DEFAULT.
const REASONS = new Map([[NEW, "SPLIT"], [EXISTING, "SPLIT"], [OVERRIDE, "TARGETING_MATCH"]]);

const REFUSALS = {
  TARGETING_KEY_MISSING: TargetingKeyMissingError,
  INVALID_CONTEXT: InvalidContextError,
  FLAG_NOT_FOUND: FlagNotFoundError,
};

const DEFAULTS = {
  local: false,
  cacheFile: null,
  refreshMs: 10_000,
  reportMs: 1_000,
  timeoutMs: 3_000,
  queueSize: 100_000,
  rememberedUsers: 200_000,
  followRefused: true,
  shutdownMs: 5_000,
  warn: (message) => console.warn(message),
};

/** What the service said of a user without a row, until the definition changes. */
class Denial {
  /**
   * @param {import("./decider.js").Experiment} experiment
   * @param {string | null} reason null if it is what the client decides by itself
   */
  constructor(experiment, reason) {
    this.experiment = experiment;
    this.reason = reason;
  }
}

/** A provider that enrols users in the experiments of Abacus. */
export class AbacusProvider extends BaseProvider {
  runsOn = "server";
  events = new OpenFeatureEventEmitter();

  #memory;
  /** @type {Definitions | null} */
  #definitions = null;
  #timer = undefined;
  #atExit = () => void this.#end();

  /**
   * @param {string} url the address of the service
   * @param {string | (() => string | Promise<string>)} token with the scope `assign`
   * @param {Partial<typeof DEFAULTS>} [options]
   */
  constructor(url, token, options = {}) {
    super(url, token, { ...DEFAULTS, ...options });
    this.#memory = new Memory(this._options.rememberedUsers);
  }

  /** Read the definitions. Without any, all flags have their defaults for now. */
  async initialize() {
    this._outbox.open();
    process.removeListener("beforeExit", this.#atExit).on("beforeExit", this.#atExit);
    if (!this._options.local) return;
    this._isOpen = true;
    await this.#readFile();
    try {
      await this.#refresh();
    } catch (error) {
      this._isStale = true;
      this._warn(error);
    }
    this.#schedule(this._options.refreshMs);
  }

  /** Send what waits, for some seconds at most, and refresh no more. */
  async onClose() {
    this._isOpen = false;
    clearTimeout(this.#timer);
    process.removeListener("beforeExit", this.#atExit);
    await this._outbox.close(this._options.shutdownMs);
  }

  /** Send what waits before a program ends that closes nothing; try this once. */
  async #end() {
    process.removeListener("beforeExit", this.#atExit);
    if (!(await this.flush(this._options.shutdownMs))) await this._outbox.close(0);
  }

  /** Read the definitions now; tell whether they are new or as they were. */
  async refresh() {
    try {
      await this.#refresh();
    } catch (error) {
      if (error instanceof Unavailable) return false;
      throw error;
    }
    return true;
  }

  // -------------------------------------------------------------------------
  // Definitions

  #schedule(ms) {
    if (!this._isOpen) return;
    this.#timer = setTimeout(() => void this.#refreshLater(), ms * (0.8 + Math.random() * 0.4));
    this.#timer.unref();
  }

  async #refreshLater() {
    let wait = this._options.refreshMs;
    try {
      const isNew = await this.#refresh();
      this._notice(true, isNew);
    } catch (error) {
      wait = Math.max(wait, error.retryAfter ?? 0);
      this._warn(error);
      this._notice(false, false);
    }
    this.#schedule(wait);
  }

  /** Ask for newer definitions; tell whether there are any. The last good ones stay. */
  async #refresh() {
    const known = this.#definitions;
    let answer;
    try {
      const tag = known === null ? undefined : `"${known.revision}"`;
      answer = await this._service.ask("GET", "/api/definitions", undefined, tag);
      if (answer.status === 304) return false;
      this.#definitions = new Definitions(answer.text, known);
    } catch (error) {
      if (error instanceof Unavailable) throw error;
      throw new Unavailable(`The definitions cannot be read: ${error.message}`);
    }
    await this.#writeFile(answer.text);
    return true;
  }

  async #readFile() {
    const file = this._options.cacheFile;
    if (file === null || this.#definitions !== null) return;
    try {
      this.#definitions = new Definitions(await readFile(file, "utf8"));
    } catch (error) {
      if (error.code !== "ENOENT") this._options.warn(`${file} is not used: ${error.message}`);
    }
  }

  /** Replace the copy on the disk in one step, so that it is always whole. */
  async #writeFile(text) {
    const file = this._options.cacheFile;
    if (file === null) return;
    const made = `${file}.${randomUUID()}`;
    try {
      const handle = await open(made, "w", 0o600);
      try {
        await handle.writeFile(text);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(made, file);
    } catch (error) {
      this._options.warn(`${file} cannot be written: ${error.message}`);
      await unlink(made).catch(() => {});
    }
  }

  // -------------------------------------------------------------------------
  // Flags

  async _resolve(key, defaultValue, context, type) {
    try {
      return await this.#resolved(key, defaultValue, context, type);
    } catch (error) {
      this._warn(error);
      throw error;
    }
  }

  #resolved(key, defaultValue, context, type) {
    const userId = userOf(context);
    if (!this._options.local) return this.#remote(key, defaultValue, context, type);
    const definitions = this.#definitions;
    if (definitions === null) throw new ProviderNotReadyError("There are no definitions yet.");
    const isConfig = key.endsWith(CONFIG);
    const experiment = definitions.byName.get(isConfig ? key.slice(0, -CONFIG.length) : key);
    if (experiment === undefined) {
      if (definitions.omitted) return this.#remote(key, defaultValue, context, type);
      throw new FlagNotFoundError(`There is no flag '${key}'.`);
    }
    let decision;
    try {
      decision = this.#decided(experiment, userId, context);
    } catch (error) {
      if (error instanceof AskService) return this.#remote(key, defaultValue, context, type);
      throw error;
    }
    return evaluation(flagOf(key, experiment, decision, isConfig), defaultValue, type);
  }

  /** Return the decision for a user, and report it unless that was done. */
  #decided(experiment, userId, context) {
    const general = experiment.general(userId);
    if (general !== null) return general;
    const name = nameOf(experiment.id, userId);
    const known = this.#memory.get(name);
    const kept = typeof known === "string" ? experiment.kept.get(known) : undefined;
    if (kept !== undefined) return kept;
    const isDenial = known instanceof Denial && known.experiment === experiment;
    if (isDenial && known.reason !== null) return { reason: known.reason, variant: null };
    const attributes = experiment.hasRules ? attributesOf(context) : undefined;
    const decision = experiment.decided(userId, attributes ?? {}, this._service.now());
    const isReported = decision.variant !== null || (!isDenial && this._options.followRefused);
    if (isReported && this._outbox.enrol({ experimentId: experiment.id, userId, attributes })) {
      this.#memory.put(name, decision.variant?.id ?? new Denial(experiment, null));
    }
    return decision;
  }

  /** Remember what the service says of users who were reported. */
  _follow(id, decisions) {
    const experiment = this.#definitions?.byName.get(id);
    for (const { userId, variantId, reason } of decisions) {
      const name = nameOf(id, userId);
      if (reason === NEW || reason === EXISTING) {
        this.#memory.put(name, variantId);
      } else if (variantId !== null) {
        this.#memory.forget(name); // an override or a winner, which is no row
      } else if (experiment && typeof this.#memory.get(name) === "string") {
        // This client had given the user a variant.
        this.#memory.put(name, new Denial(experiment, reason));
      }
    }
  }

  async #remote(key, defaultValue, context, type) {
    const body = { context: { ...attributesOf(context), targetingKey: context.targetingKey } };
    let flag;
    try {
      flag = await this._service.post(`/ofrep/v1/evaluate/flags/${encodeURIComponent(key)}`, body);
    } catch (error) {
      if (!(error instanceof Refused)) throw new GeneralError(error.message);
      const { errorCode, errorDetails } = error.body;
      const Kind = Object.hasOwn(REFUSALS, errorCode) ? REFUSALS[errorCode] : GeneralError;
      throw new Kind(String(errorDetails));
    }
    if (typeof flag.reason !== "string") throw new GeneralError("The answer is not a flag.");
    return evaluation(flag, defaultValue, type);
  }
}

const nameOf = (id, userId) => `${id}\n${userId}`;

/** Return the flag as the service would answer it. */
function flagOf(key, experiment, decision, isConfig) {
  const { variant } = decision;
  const reason = REASONS.get(decision.reason) ?? "DEFAULT";
  const metadata = { experimentId: experiment.id };
  if (reason !== "SPLIT") metadata.decision = decision.reason;
  if (variant === null) return { key, reason, variant: NOT_ENROLLED, metadata };
  let value = variant.flowId || variant.name;
  // A copy, because the application may change it.
  if (isConfig) value = variant.config === null ? undefined : structuredClone(variant.config);
  return { key, value, reason, variant: variant.id, metadata };
}
