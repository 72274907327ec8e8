/** What the providers for servers and for browsers share. */

import { TypeMismatchError } from "@openfeature/core";

import { isUserId } from "./decider.js";

export const CONFIG = ".config"; // a flag with this ending has the config of a variant
export const NOT_ENROLLED = "not_enrolled";

/**
 * Return the value as JSON has it: a date is its text, and what JSON lacks is null.
 *
 * @param {any} value
 */
export function plain(value) {
  switch (typeof value) {
    case "string":
    case "boolean":
      return value;
    case "number":
      return Number.isFinite(value) ? value : null;
    case "bigint":
      return plain(Number(value));
    case "object":
      break;
    default:
      return undefined;
  }
  if (value === null) return null;
  if (Array.isArray(value)) return value.map((item) => plain(item) ?? null);
  if (typeof value.toJSON === "function") return plain(value.toJSON());
  return plainObject(value, undefined);
}

function plainObject(value, leftOut) {
  const made = {};
  for (const name of Object.keys(value)) {
    if (name === leftOut) continue;
    const item = plain(value[name]);
    if (item === undefined) continue;
    if (name === "__proto__") {
      Object.defineProperty(made, name, { value: item, enumerable: true });
    } else {
      made[name] = item;
    }
  }
  return made;
}

/**
 * Return the attributes of the user whom a context has.
 *
 * @param {any} context
 */
export function attributesOf(context) {
  return plainObject(context ?? {}, "targetingKey");
}

/**
 * Return the event that `track` sends, or throw.
 *
 * @param {string} name
 * @param {any} context
 * @param {any} details
 */
export function eventOf(name, context, details) {
  const userId = context?.targetingKey;
  if (!isUserId(userId)) throw new TypeError("The context has no id of a user.");
  const { value, idempotencyKey } = details ?? {};
  const event = { userId, metric: name, idempotencyKey: String(idempotencyKey ?? uniqueKey()) };
  if (value !== undefined && value !== null) {
    if (!Number.isFinite(value)) throw new TypeError("The value is not a number.");
    event.value = value;
  }
  return event;
}

/** `randomUUID` is missing where a page was not loaded by HTTPS. */
function uniqueKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Return the evaluation of a flag as OpenFeature has it, of an answer of OFREP.
 *
 * @param {any} flag
 * @param {any} defaultValue
 * @param {string} type of the value
 */
export function evaluation(flag, defaultValue, type) {
  const value = flag.value ?? defaultValue;
  if (flag.value !== undefined && typeof value !== type) {
    throw new TypeMismatchError(`The flag ${flag.key} is no ${type}.`);
  }
  return { value, reason: flag.reason, variant: flag.variant, flagMetadata: flag.metadata };
}
