/** Which variant a user gets: the published definitions, evaluated in this process. */

import { folded } from "./folding.js";
import { moment } from "./orders.js";
import { TooCostly } from "./patterns.js";
import { INEXACT, compiled, length } from "./rules.js";
import { hex, sha256 } from "./sha256.js";

const VERSION = 1;
const BUCKETS = 10_000;

export const NEW = "NEW_ASSIGNMENT";
export const EXISTING = "EXISTING_ASSIGNMENT";
export const OVERRIDE = "OVERRIDE";
export const WINNER = "WINNER";

const NOT_IDS = new Set(["undefined", "null", "none", "nan", "[object object]"]);
const ID_LENGTH = 255;
// What Python takes for a blank, which is not what `trim` does.
const BLANK = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const BLANKS = new RegExp(`^${BLANK}+|${BLANK}+$`, "g");
const PLAIN_ID = /^[0-9a-z_-]*[0-9_-][0-9a-z_-]*$/; // surely none of the marks above

/** The definitions are of a version that this client does not know. */
export class UnknownVersion extends Error {}

/** Only the service can decide about this user. */
export class AskService extends Error {}

/** The definitions have no experiment of this name. */
export class UnknownExperiment extends Error {}

/**
 * Tell whether the service takes this as the id of a user.
 *
 * @param {unknown} userId
 */
export function isUserId(userId) {
  if (typeof userId !== "string" || userId.length > 2 * ID_LENGTH) return false;
  if (userId.length <= ID_LENGTH && PLAIN_ID.test(userId)) return true;
  if (/\p{Surrogate}|\0/u.test(userId) || length(userId) > ID_LENGTH) return false;
  const mark = folded(userId.replace(BLANKS, ""));
  return mark !== "" && !NOT_IDS.has(mark);
}

/**
 * Return the bucket, 0 to 9,999, of a user under a salt.
 *
 * The product of 52 bits and 10,000 is calculated in two halves of 26 bits, because a
 * double holds 53 bits.
 *
 * @param {string} salt
 * @param {string} userId
 */
export const bucket = (salt, userId) => bucketOf(`${salt}:${userId}`);

function bucketOf(text) {
  const state = sha256(text);
  const high = state[0] >>> 6;
  const low = (state[0] & 63) * 2 ** 20 + (state[1] >>> 12);
  const carried = Math.floor((low * BUCKETS) / 2 ** 26);
  return Math.floor((high * BUCKETS + carried) / 2 ** 26);
}

/** @typedef {{id: string, name: string, flowId: string | null, config: any}} Variant */
/** @typedef {{reason: string, variant: Variant | null}} Decision */

const without = (reason) => Object.freeze({ reason, variant: null });
const CLOSED = without("ENROLLMENT_CLOSED");
const OUTSIDE = without("NOT_IN_AUDIENCE");
const OTHER_RANGE = without("EXCLUDED");
const OUT = without("HELD_OUT");

/** An experiment as the definitions have it. */
export class Experiment {
  /**
   * @param {any} document
   * @param {any} rules those of the document, with inexact numbers marked
   * @param {string} text the document as a text, to compare it with a later one
   */
  constructor(document, rules, text) {
    this.text = text;
    this.id = document.id;
    this.key = document.key;
    /** @type {Decision[]} */
    this.fresh = [];
    /** @type {Map<string, Decision>} */
    this.kept = new Map();
    this.ends = [];
    let end = 0;
    for (const { id, name, flowId, config, split } of document.variants) {
      const variant = { id, name, flowId, config };
      this.fresh.push({ reason: NEW, variant });
      this.kept.set(id, { reason: EXISTING, variant });
      this.ends.push((end += split));
    }
    this.isOpen = document.status === "running";
    this.end = document.endDate === null ? Infinity : milliseconds(document.endDate);
    this.traffic = document.traffic;
    this.ranges = document.ranges;
    this.winner = this.#forced(WINNER, document.winner);
    this.overrides = new Map();
    for (const [hash, id] of Object.entries(document.overrides)) {
      const decision = this.#forced(OVERRIDE, id);
      if (decision !== null) this.overrides.set(hash, decision);
    }
    const { variant, traffic, group, userId } = document.salts;
    this.prefixes = {
      variant: `${variant}:`,
      traffic: `${traffic}:`,
      group: `${group}:`,
      userId: `${userId}:`,
    };
    this.holds = null;
    this.needsService = false;
    if (document.rules !== null) {
      try {
        this.holds = compiled(rules, userId);
      } catch {
        this.needsService = true; // whatever a later service may publish
      }
    }
  }

  #forced(reason, id) {
    const kept = this.kept.get(id);
    return kept === undefined ? null : { reason, variant: kept.variant };
  }

  /** Whether the decision depends on the attributes of the user. */
  get hasRules() {
    return this.holds !== null || this.needsService;
  }

  /**
   * Return the decision that no row overrules: an override, or a winner.
   *
   * @param {string} userId
   * @returns {Decision | null}
   */
  general(userId) {
    if (this.overrides.size) {
      const decision = this.overrides.get(hex(sha256(this.prefixes.userId + userId)));
      if (decision !== undefined) return decision;
    }
    return this.winner;
  }

  /**
   * Return the decision for a user without a row, whom `general` leaves open.
   *
   * Throw AskService if the rules cannot be evaluated here.
   *
   * @param {string} userId
   * @param {Record<string, any>} attributes
   * @param {number} now milliseconds since 1970
   * @returns {Decision}
   */
  decided(userId, attributes, now) {
    if (!this.isOpen || this.end <= now) return CLOSED;
    if (this.needsService) throw new AskService();
    if (this.holds !== null && !this.#admits(userId, attributes)) return OUTSIDE;
    if (this.ranges !== null) {
      const place = bucketOf(this.prefixes.group + userId);
      if (!this.ranges.some(([first, last]) => first <= place && place <= last)) {
        return OTHER_RANGE;
      }
    } else if (this.traffic < BUCKETS) {
      if (bucketOf(this.prefixes.traffic + userId) >= this.traffic) return OUT;
    }
    const place = bucketOf(this.prefixes.variant + userId);
    return this.fresh[this.ends.findIndex((end) => place < end)];
  }

  #admits(userId, attributes) {
    try {
      return this.holds(userId, attributes);
    } catch (error) {
      if (error instanceof TooCostly || error instanceof RangeError) throw new AskService();
      throw error;
    }
  }
}

/** All experiments, by id and by key, as of one revision. */
export class Definitions {
  /**
   * @param {string} text the answer of `GET /api/definitions`
   * @param {Definitions | null} [earlier] of which unchanged experiments are kept
   */
  constructor(text, earlier = null) {
    const document = JSON.parse(text).data;
    if (document.version !== VERSION) throw new UnknownVersion(String(document.version));
    const marked = withInexact(text)?.data ?? document;
    /** @type {string} */
    this.revision = document.revision;
    /** @type {number} */
    this.omitted = document.omitted;
    /** @type {Map<string, Experiment>} */
    this.byName = new Map();
    document.experiments.forEach((one, place) => {
      const { rules } = marked.experiments[place];
      const own = JSON.stringify([one, rules]);
      const before = earlier?.byName.get(one.id);
      // The same object says that nothing has changed.
      const experiment = before?.text === own ? before : new Experiment(one, rules, own);
      this.byName.set(experiment.id, experiment);
      this.byName.set(experiment.key, experiment);
    });
  }

  /**
   * Return the decision for a user without a row.
   *
   * Throw UnknownExperiment, or AskService if only the service knows.
   *
   * @param {string} name the key of an experiment, or its id
   * @param {string} userId
   * @param {Record<string, any>} [attributes] as JSON has them
   * @param {number} [now] milliseconds since 1970
   * @returns {Decision}
   */
  decide(name, userId, attributes = {}, now = Date.now()) {
    const experiment = this.byName.get(name);
    if (experiment === undefined) throw new UnknownExperiment(name);
    return experiment.general(userId) ?? experiment.decided(userId, attributes, now);
  }
}

function milliseconds(text) {
  const { seconds, nanoseconds } = moment(text);
  return seconds * 1000 + nanoseconds / 1e6;
}

const TOKEN = /"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/g;

/** Return the document with inexact numbers marked, or null if it has none. */
function withInexact(text) {
  let isMarked = false;
  const marked = text.replace(TOKEN, (token, place) => {
    if (token[0] === '"' || isExact(token)) return token;
    isMarked = true;
    return `{${JSON.stringify(INEXACT)}:true}`;
  });
  return isMarked ? JSON.parse(marked) : null;
}

/** Tell whether a number prints as it was read, apart from its notation. */
function isExact(token) {
  if (token.length <= 15 && !/[eE]/.test(token)) return true;
  const number = Number(token);
  return Number.isFinite(number) && digits(token) === digits(String(number));
}

/** Return the digits and the exponent of a number, without zeros that say nothing. */
function digits(text) {
  const [, sign, whole, part = "", exponent = "0"] = /^(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?$/.exec(text);
  const all = (whole + part).replace(/^0+/, "");
  const kept = all.replace(/0+$/, "");
  if (kept === "") return "0";
  return `${sign}${kept}e${Number(exponent) - part.length + all.length - kept.length}`;
}
