/**
 * What the service said about users, for as many of them as there is room.
 *
 * There are two generations. When the young one is full it becomes the old one, which is
 * forgotten, so that nothing has to be searched for what is oldest.
 */
export class Memory {
  #half;
  #young = new Map();
  #old = new Map();

  /** @param {number} most how many are kept */
  constructor(most) {
    this.#half = Math.max(1, Math.floor(most / 2));
  }

  /** @param {string} name */
  get(name) {
    const known = this.#young.get(name);
    if (known !== undefined) return known;
    const old = this.#old.get(name);
    if (old !== undefined) this.put(name, old);
    return old;
  }

  /** @param {string} name @param {any} known */
  put(name, known) {
    if (this.#young.size >= this.#half) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(name, known);
  }

  /** @param {string} name */
  forget(name) {
    this.#young.delete(name);
    this.#old.delete(name);
  }
}
