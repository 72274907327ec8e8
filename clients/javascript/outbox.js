/** Enrolments and events on their way to the service. */

import { Leftovers } from "./leftovers.js";
import { Refused, Unavailable, bytesOf } from "./service.js";

const USERS_AT_ONCE = 5_000; // the service takes 10,000; with attributes they may be large
const EVENTS_AT_ONCE = 500; // the service books at most 10,000 pairs of event and experiment
const TOGETHER = 100; // enrolments that the service takes with events
const REQUESTS_AT_ONCE = 6; // as many as a browser sends
const LONGEST_WAIT = 30_000;

/** @typedef {{experimentId: string, userId: string, attributes: any}} Enrolment */

/**
 * Two bounded queues. Enrolments leave before the events that came after them.
 *
 * What the service has not acknowledged stays, in order, and is sent again: a row of an
 * enrolment is unique, and an event has an idempotency key. A full queue takes no more,
 * and counts what it drops.
 */
export class Outbox {
  #service;
  #tell;
  #options;
  /** @type {Enrolment[]} */
  #enrolments = [];
  /** @type {any[]} */
  #events = [];
  #unsent = new Map(); // how many enrolments wait, by their users
  #timer = undefined;
  #isSending = false;
  #isFailing = false;
  #isClosed = false;
  #wait;
  #flushes = new Set();
  #leftovers;
  #left = 0; // how many reports there had been when the page was left last
  #counts = {};

  /**
   * @param {import("./service.js").Service} service
   * @param {(experimentId: string, decisions: any[]) => void} tell takes the decisions
   *   of the service about users who were reported
   * @param {{reportMs: number, queueSize: number, storage?: Storage | null,
   *   warn: (message: string) => void}} options
   */
  constructor(service, tell, options) {
    this.#service = service;
    this.#tell = tell;
    this.#options = options;
    this.#wait = options.reportMs;
    this.#leftovers = new Leftovers(options.storage ?? null, service.url);
    for (const name of ["enrolments", "events"]) {
      for (const fate of ["Queued", "Sent", "Refused", "Dropped"]) this.#counts[name + fate] = 0;
    }
    this.#counts.attemptsFailed = 0;
  }

  /** What was queued, sent, refused and dropped, and what is waiting. */
  get counters() {
    return {
      ...this.#counts,
      enrolmentsWaiting: this.#enrolments.length,
      eventsWaiting: this.#events.length,
    };
  }

  get isEmpty() {
    return this.#enrolments.length === 0 && this.#events.length === 0;
  }

  /**
   * Queue an enrolment; tell whether there was room.
   *
   * @param {Enrolment} enrolment
   */
  enrol(enrolment) {
    if (!this.#hasRoom(this.#enrolments, "enrolments")) return false;
    this.#enrolments.push(enrolment);
    this.#noteUnsent(enrolment);
    this.#wake(this.#enrolments.length >= USERS_AT_ONCE);
    return true;
  }

  /**
   * Queue an event; tell whether there was room.
   *
   * The service would refuse an event that is older than its enrolment. So the event has
   * no time of its own, and that of its arrival counts, if the enrolment is still on its
   * way.
   *
   * @param {any} event
   * @param {string} occurredAt
   */
  report(event, occurredAt) {
    if (!this.#hasRoom(this.#events, "events")) return false;
    this.#events.push(this.#unsent.has(event.userId) ? event : { ...event, occurredAt });
    this.#wake(this.#events.length >= EVENTS_AT_ONCE);
    return true;
  }

  /** Count an event that cannot be sent. */
  refuseEvent() {
    this.#counts.eventsRefused++;
  }

  #hasRoom(queue, name) {
    const hasRoom = queue.length < this.#options.queueSize && !this.#isClosed;
    this.#counts[name + (hasRoom ? "Queued" : "Dropped")]++;
    return hasRoom;
  }

  #noteUnsent({ userId }) {
    this.#unsent.set(userId, (this.#unsent.get(userId) ?? 0) + 1);
  }

  /** Take reports, also after a `close`; the first are those that earlier pages left. */
  open() {
    this.#isClosed = false;
    const { enrolments, events } = this.#leftovers.take();
    for (const one of enrolments) this.enrol(one);
    for (const one of events) {
      if (this.#hasRoom(this.#events, "events")) this.#events.push(one);
    }
    if (this.isEmpty) return;
    this.#keep();
    this.#wake(true);
  }

  /**
   * Send what waits, as the page may end: one request has the events and the enrolments
   * before them, because no answer may come any more. What is not acknowledged is kept
   * for the next page too.
   */
  leave() {
    const reports = this.#counts.enrolmentsQueued + this.#counts.eventsQueued;
    if (this.isEmpty || reports === this.#left) return;
    this.#left = reports;
    this.#keep();
    // A run that waits for an answer goes on if the page does.
    if (this.#isSending) void this.#sendTogether().catch(() => {});
    else void this.#run(() => this.#leaveTogether());
  }

  #keep() {
    return this.#leftovers.keep(this.#enrolments, this.#events);
  }

  /**
   * Send all that waits; tell whether the service has it within this time.
   *
   * @param {number} ms
   * @returns {Promise<boolean>}
   */
  flush(ms) {
    if (this.isEmpty) return Promise.resolve(true);
    return new Promise((resolve) => {
      const flush = (isSent) => {
        clearTimeout(limit);
        this.#flushes.delete(flush);
        resolve(isSent);
      };
      // This timer also keeps the program alive until all is sent.
      const limit = setTimeout(() => flush(false), ms);
      this.#flushes.add(flush);
      void this.#run(); // at once, because a page that ends runs no timer any more
    });
  }

  /**
   * Send all that waits, for some time at most, and take no more.
   *
   * @param {number} ms
   */
  async close(ms) {
    if (this.#isClosed) return;
    await this.flush(ms);
    this.#isClosed = true;
    const isKept = this.#keep();
    const lost = this.#enrolments.length + this.#events.length;
    this.#counts.enrolmentsDropped += this.#enrolments.length;
    this.#counts.eventsDropped += this.#events.length;
    this.#enrolments = [];
    this.#events = [];
    this.#unsent.clear();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const fate = isKept ? "kept for the next page" : "lost";
    if (lost) this.#options.warn(`Abacus did not answer; ${lost} reports are ${fate}.`);
  }

  // -------------------------------------------------------------------------
  // Sending

  #wake(isUrgent) {
    if (this.#isSending) return;
    if (isUrgent && !this.#isFailing) this.#schedule(0);
    else if (this.#timer === undefined) this.#schedule(this.#wait);
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#run(), ms);
    this.#timer.unref?.(); // in Node, what waits does not keep the program alive
  }

  async #run(send = () => this.#sendAll()) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#isSending) return;
    this.#isSending = true;
    try {
      await send();
      this.#isFailing = false;
      this.#wait = this.#options.reportMs;
    } catch (error) {
      const isDefect = !(error instanceof Unavailable);
      this.#options.warn(`Abacus: ${isDefect ? (error?.stack ?? error) : error.message}`);
      this.#isFailing = true;
      this.#wait = this.#pause(error);
    } finally {
      this.#isSending = false;
      this.#left = 0;
      if (this.#leftovers.isKept && !this.#isClosed) this.#keep();
    }
    if (this.isEmpty) for (const flush of this.#flushes) flush(true);
    else if (!this.#isClosed) this.#schedule(this.#flushes.size && !this.#isFailing ? 0 : this.#wait);
  }

  /** Return how long to wait for the next attempt: twice as long, with jitter. */
  #pause(error) {
    this.#counts.attemptsFailed++;
    if (this.#flushes.size) return 200;
    const longer = Math.min(Math.max(this.#wait, 100) * 2, LONGEST_WAIT);
    return Math.max(longer * (0.5 + Math.random() / 2), error.retryAfter ?? 0);
  }

  /** Send what waits now: the events, and before them all enrolments. */
  async #sendAll() {
    let events = this.#events.length;
    while (this.#enrolments.length) {
      await this.#sendEnrolments(this.#enrolments.slice(0, USERS_AT_ONCE));
    }
    while (events > 0 && this.#events.length) {
      const rows = this.#events.slice(0, Math.min(events, EVENTS_AT_ONCE));
      this.#count("events", await this.#send("/api/events/batch", "events", rows));
      if (this.#events[0] === rows[0]) this.#events.splice(0, rows.length);
      events -= rows.length;
    }
  }

  /** Send what a page may send in the end, and then the rest if the page goes on. */
  async #leaveTogether() {
    const [enrolments, events] = await this.#sendTogether();
    this.#counts.enrolmentsSent += enrolments.length;
    this.#counts.eventsSent += events.length;
    if (this.#enrolments[0] === enrolments[0]) this.#takeOff(enrolments.length);
    if (this.#events[0] === events[0]) this.#events.splice(0, events.length);
    await this.#sendAll();
  }

  /**
   * Send events in one request with the enrolments before them; return both.
   *
   * They are as many as may outlive the page. Enrolments alone are not sent.
   */
  async #sendTogether() {
    let room = this.#service.room - 100;
    const fits = (row) => (room -= bytesOf(JSON.stringify(row)) + 1) >= 0;
    const fitting = (rows) => rows.filter(fits); // once there is no room, there is none
    const enrolments = fitting(this.#enrolments.slice(0, TOGETHER));
    const events = fitting(this.#events.slice(0, EVENTS_AT_ONCE));
    if (events.length === 0) return [[], []];
    const enrollments = enrolments.map(({ experimentId, userId, attributes }) => ({
      experiment: experimentId, userId, attributes,
    }));
    try {
      await this.#service.post("/api/events/batch", { events, enrollments });
    } catch (error) {
      if (error instanceof Refused) return [[], []]; // one by one, which finds the wrong row
      throw error;
    }
    return [enrolments, events];
  }

  #count(name, answers) {
    const refused = answers.filter((one) => one === null).length;
    this.#counts[`${name}Refused`] += refused;
    this.#counts[`${name}Sent`] += answers.length - refused;
  }

  /** Send the first enrolments of the queue, those of one experiment at a time. */
  async #sendEnrolments(some) {
    const byExperiment = new Map();
    for (const one of some) {
      const those = byExperiment.get(one.experimentId);
      if (those) those.push(one);
      else byExperiment.set(one.experimentId, [one]);
    }
    const left = [...byExperiment];
    try {
      while (left.length) await this.#sendAtOnce(left.splice(0, REQUESTS_AT_ONCE), byExperiment);
    } finally {
      if (this.#enrolments[0] === some[0]) {
        this.#takeOff(some.length, some.filter((one) => byExperiment.has(one.experimentId)));
      }
    }
  }

  /** Send enrolments, a request an experiment; take off what the service has answered. */
  async #sendAtOnce(several, byExperiment) {
    const ended = await Promise.allSettled(several.map(async ([id, those]) => {
      const rows = those.map(({ userId, attributes }) => ({ userId, attributes }));
      const path = `/api/experiments/${encodeURIComponent(id)}/assignments/batch`;
      const decisions = await this.#send(path, "users", rows);
      byExperiment.delete(id);
      this.#count("enrolments", decisions);
      this.#tell(id, decisions.filter((one) => one !== null));
    }));
    const failed = ended.find(({ status }) => status === "rejected");
    if (failed) throw failed.reason;
  }

  /** Take the first enrolments off the queue, and put some of them back. */
  #takeOff(number, again = []) {
    this.#enrolments.splice(0, number, ...again);
    this.#unsent.clear();
    for (const one of this.#enrolments) this.#noteUnsent(one);
  }

  /**
   * Return an answer for each row, null for one that the service refuses.
   *
   * The service refuses a whole call for one wrong row. Halves of halves find it.
   */
  async #send(path, name, rows) {
    let answers;
    try {
      answers = (await this.#service.post(path, { [name]: rows })).data;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (![400, 413].includes(error.status) || rows.length === 1) {
        this.#options.warn(`Abacus refused ${rows.length} ${name}: ${error.message}`);
        return rows.map(() => null);
      }
      const middle = rows.length >> 1;
      const first = await this.#send(path, name, rows.slice(0, middle));
      return [...first, ...(await this.#send(path, name, rows.slice(middle)))];
    }
    if (!Array.isArray(answers) || answers.length !== rows.length) {
      throw new Unavailable("The answer is not one for each row.");
    }
    return answers;
  }
}
