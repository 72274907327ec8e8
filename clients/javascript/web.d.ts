import type {
  EvaluationContext,
  JsonValue,
  OpenFeatureEventEmitter,
  Provider,
  ResolutionDetails,
  TrackingEventDetails,
} from "@openfeature/web-sdk";

import type { Counters, SharedOptions, Token } from "./index.js";

export type { Counters, Token } from "./index.js";

export interface Options extends SharedOptions {
  /** How often all flags are asked for again, in milliseconds; 0 is never. */
  pollMs?: number;
  /** Where reports are kept that a page could not send; `localStorage` without it. */
  storage?: Storage | null;
}

/** A provider that enrols a user in an experiment when its flag is read first. */
export class AbacusWebProvider implements Provider {
  constructor(url: string, token: Token, options?: Options);
  readonly metadata: { readonly name: "Abacus" };
  readonly runsOn: "client";
  readonly events: OpenFeatureEventEmitter;
  /** How much was queued, sent, refused, dropped, and is waiting. */
  readonly counters: Counters;
  initialize(context?: EvaluationContext): Promise<void>;
  onContextChange(before: EvaluationContext, context: EvaluationContext): Promise<void>;
  onClose(): Promise<void>;
  /** Send what waits now; tell whether the service has it within these milliseconds. */
  flush(ms?: number): Promise<boolean>;
  /** Ask for all flags now; tell whether the service answered. */
  refresh(): Promise<boolean>;
  /** Report an event in the background. This never throws. */
  track(name: string, context: EvaluationContext, details?: TrackingEventDetails): void;
  resolveBooleanEvaluation(
    key: string, defaultValue: boolean, context: EvaluationContext,
  ): ResolutionDetails<boolean>;
  resolveStringEvaluation(
    key: string, defaultValue: string, context: EvaluationContext,
  ): ResolutionDetails<string>;
  resolveNumberEvaluation(
    key: string, defaultValue: number, context: EvaluationContext,
  ): ResolutionDetails<number>;
  resolveObjectEvaluation<T extends JsonValue>(
    key: string, defaultValue: T, context: EvaluationContext,
  ): ResolutionDetails<T>;
}
