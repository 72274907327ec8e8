/** What the providers for servers and for browsers share. */

/** A token with the scope `assign`, or a function that is called for each request. */
export type Token = string | (() => string | Promise<string>);

/** How many reports were queued, sent, refused and dropped, and how many are waiting. */
export interface Counters {
  enrolmentsQueued: number;
  enrolmentsSent: number;
  enrolmentsRefused: number;
  enrolmentsDropped: number;
  enrolmentsWaiting: number;
  eventsQueued: number;
  eventsSent: number;
  eventsRefused: number;
  eventsDropped: number;
  eventsWaiting: number;
  attemptsFailed: number;
}

export interface SharedOptions {
  /** How long reports are collected, in milliseconds. */
  reportMs?: number;
  /** How long a request may take, in milliseconds. */
  timeoutMs?: number;
  /** How many enrolments, and how many events, may wait. */
  queueSize?: number;
  /** How long the end waits for the last reports, in milliseconds. */
  shutdownMs?: number;
  /** Takes the warnings; `console.warn` without it. */
  warn?: (message: string) => void;
}
