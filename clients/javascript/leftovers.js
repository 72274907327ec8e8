/** Reports that a page may not have sent before its end, kept for the next page. */

/** What the storage of a page has of one service, an entry for each page. */
export class Leftovers {
  #storage;
  #prefix;
  #name;
  #isKept = false;

  /**
   * @param {Storage | null} storage null keeps nothing
   * @param {string} url the address of the service
   */
  constructor(storage, url) {
    this.#storage = storage;
    this.#prefix = `abacus-openfeature ${url} `;
    this.#name = this.#prefix + Math.random().toString(36).slice(2);
  }

  /** Return the reports of all pages, which are removed from the storage. */
  take() {
    const enrolments = [];
    const events = [];
    for (const name of this.#names()) {
      const left = this.#removed(name);
      if (!Array.isArray(left?.enrolments) || !Array.isArray(left.events)) continue;
      enrolments.push(...left.enrolments);
      events.push(...left.events);
    }
    return { enrolments, events };
  }

  /** Keep the reports of this page, in place of those before; tell whether there is room. */
  keep(enrolments, events) {
    if (this.#storage === null) return false;
    try {
      if (enrolments.length || events.length) {
        this.#storage.setItem(this.#name, JSON.stringify({ enrolments, events }));
        this.#isKept = true;
      } else if (this.#isKept) {
        this.#storage.removeItem(this.#name);
        this.#isKept = false;
      }
    } catch {
      return false; // it is full, or forbidden
    }
    return true;
  }

  get isKept() {
    return this.#isKept;
  }

  #names() {
    try {
      const names = Object.keys(this.#storage ?? {});
      return names.filter((name) => name.startsWith(this.#prefix));
    } catch {
      return [];
    }
  }

  #removed(name) {
    try {
      const text = this.#storage.getItem(name);
      this.#storage.removeItem(name);
      return JSON.parse(text);
    } catch {
      return null; // another program has written it
    }
  }
}
