import type {
  EvaluationContext,
  JsonValue,
  OpenFeatureEventEmitter,
  Provider,
  ResolutionDetails,
  TrackingEventDetails,
} from "@openfeature/server-sdk";

import type { Counters, SharedOptions, Token } from "./index.js";

export type { Counters, Token } from "./index.js";

export interface Options extends SharedOptions {
  /** Decide in this process. */
  local?: boolean;
  /** Where the last good definitions are kept. */
  cacheFile?: string | null;
  /** How often the definitions are read, in milliseconds. */
  refreshMs?: number;
  /** Of how many pairs of an experiment and a user the report is remembered. */
  rememberedUsers?: number;
  /** Report also the users who are not taken. */
  followRefused?: boolean;
}

/** A provider that enrols users in the experiments of Abacus. */
export class AbacusProvider implements Provider {
  constructor(url: string, token: Token, options?: Options);
  readonly metadata: { readonly name: "Abacus" };
  readonly runsOn: "server";
  readonly events: OpenFeatureEventEmitter;
  /** How much was queued, sent, refused, dropped, and is waiting. */
  readonly counters: Counters;
  initialize(): Promise<void>;
  onClose(): Promise<void>;
  /** Send what waits now; tell whether the service has it within these milliseconds. */
  flush(ms?: number): Promise<boolean>;
  /** Read the definitions now; tell whether they are new or as they were. */
  refresh(): Promise<boolean>;
  /** Report an event in the background. This never throws. */
  track(name: string, context?: EvaluationContext, details?: TrackingEventDetails): void;
  resolveBooleanEvaluation(
    key: string, defaultValue: boolean, context: EvaluationContext,
  ): Promise<ResolutionDetails<boolean>>;
  resolveStringEvaluation(
    key: string, defaultValue: string, context: EvaluationContext,
  ): Promise<ResolutionDetails<string>>;
  resolveNumberEvaluation(
    key: string, defaultValue: number, context: EvaluationContext,
  ): Promise<ResolutionDetails<number>>;
  resolveObjectEvaluation<T extends JsonValue>(
    key: string, defaultValue: T, context: EvaluationContext,
  ): Promise<ResolutionDetails<T>>;
}
