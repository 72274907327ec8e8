export interface Variant {
  id: string;
  name: string;
  flowId: string | null;
  config: unknown;
}

export interface Decision {
  /** As the API has it, such as `NEW_ASSIGNMENT` or `NOT_IN_AUDIENCE`. */
  reason: string;
  /** What the user gets, or null. */
  variant: Variant | null;
}

/** The definitions are of a version that this client does not know. */
export class UnknownVersion extends Error {}

/** Only the service can decide about this user. */
export class AskService extends Error {}

/** The definitions have no experiment of this name. */
export class UnknownExperiment extends Error {}

/** All experiments, by id and by key, as of one revision. */
export class Definitions {
  /** Take the text that `GET /api/definitions` answers. */
  constructor(text: string, earlier?: Definitions | null);
  readonly revision: string;
  readonly omitted: number;
  /** Return the decision for a user without a row; `now` is milliseconds since 1970. */
  decide(name: string, userId: string, attributes?: Record<string, unknown>, now?: number): Decision;
}

/** Return the bucket, 0 to 9,999, of a user under a salt. */
export function bucket(salt: string, userId: string): number;

/** Tell whether the service takes this as the id of a user. */
export function isUserId(userId: unknown): userId is string;
