/**
 * Patterns in RE2's syntax, as far as JavaScript searches the same texts.
 *
 * A pattern is read here and written again for `RegExp`, character by character, so
 * that nothing depends on what both syntaxes happen to share. Whatever is not surely
 * the same is left to the service, and so is a search that `RegExp`, which backtracks,
 * might take long for.
 */

/** The pattern has something that only the service can search. */
export class UnsupportedPattern extends Error {}

/** The text is too long to search it here. */
export class TooCostly extends Error {}

const STEPS = 1_000_000;
const SHORTEST = 16; // a pattern that is only searched in shorter texts is of no use

const CLASSES = {
  d: "0-9",
  D: "\\0-\\/:-\\u{10ffff}",
  s: "\\t\\n\\f\\r ",
  S: "\\0-\\u{8}\\u{b}\\u{e}-\\u{1f}!-\\u{10ffff}",
  w: "0-9A-Z_a-z",
  W: "\\0-\\/:-@\\[-\\^`\\{-\\u{10ffff}",
};
const ESCAPED = { a: "\x07", f: "\f", n: "\n", r: "\r", t: "\t", v: "\v" };
const CATEGORY =
  /^(?:L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?)$/;
const REPEAT = /^\{([0-9]{1,4})(?:(,)([0-9]{1,4})?)?\}/;

const isLetter = (char) => /^[0-9A-Za-z]$/.test(char);

/** Write a character so that it stands for itself in any place of a `RegExp`. */
const literal = (char) =>
  isLetter(char) ? char : `\\u{${char.codePointAt(0).toString(16)}}`;

class Reader {
  constructor(pattern) {
    this.chars = [...pattern];
    this.place = 0;
    /** How many repetitions have no single length: each may end anywhere. */
    this.repeats = 0;
    /** In how many ways the rest can match at one place, at most. */
    this.ways = 1;
    this.flags = this.readFlags();
  }

  get next() {
    return this.chars[this.place];
  }

  startsWith(text) {
    return this.chars.slice(this.place, this.place + text.length).join("") === text;
  }

  skip(text) {
    const isNext = this.startsWith(text);
    if (isNext) this.place += text.length;
    return isNext;
  }

  take() {
    if (this.place >= this.chars.length) throw new UnsupportedPattern("It ends early.");
    return this.chars[this.place++];
  }

  /** Read `(?i)`, `(?s)` or both, at the very beginning alone. */
  readFlags() {
    for (const [text, flags] of [["(?i)", "i"], ["(?s)", "s"], ["(?is)", "is"], ["(?si)", "is"]]) {
      if (this.skip(text)) return flags;
    }
    return "";
  }

  get isCaseless() {
    return this.flags.includes("i");
  }

  /** Read alternatives up to the end, or up to the end of a group. */
  alternatives() {
    let written = "";
    let branches = 1;
    while (this.place < this.chars.length && this.next !== ")") {
      const isNext = this.skip("|");
      written += isNext ? "|" : this.piece();
      branches += isNext ? 1 : 0;
    }
    this.ways *= branches;
    return written;
  }

  piece() {
    if (this.skip("(")) {
      if (this.skip("?")) this.groupKind();
      const inner = this.alternatives();
      if (!this.skip(")")) throw new UnsupportedPattern("There is a bracket too few.");
      return `(?:${inner})${this.repetition(true)}`;
    }
    const [written, isRepeatable] = this.atom();
    return written + (isRepeatable ? this.repetition(false) : this.noRepetition());
  }

  groupKind() {
    if (this.skip(":")) return;
    if (!this.skip("P<") && !this.skip("<")) throw new UnsupportedPattern("Flags in a group.");
    const name = [];
    while (!this.skip(">")) name.push(this.take());
    if (!/^[A-Za-z0-9_]+$/.test(name.join(""))) throw new UnsupportedPattern("A group's name.");
  }

  noRepetition() {
    if (this.next !== undefined && "*+?{".includes(this.next)) {
      throw new UnsupportedPattern("An assertion is repeated.");
    }
    return "";
  }

  /** Read a repetition; one of a group may make the search slow. */
  repetition(isGroup) {
    const mark = this.next;
    if (mark === undefined || !"*+?{".includes(mark)) return "";
    let written = mark;
    if (mark === "{") {
      const match = REPEAT.exec(this.chars.slice(this.place).join(""));
      if (match === null) throw new UnsupportedPattern("A brace alone.");
      this.place += match[0].length;
      written = match[0];
      if (match[2]) this.repeats++;
      else this.ways *= Math.max(1, Number(match[1]));
    } else {
      this.place++;
      if (mark === "?") this.ways *= 2;
      else this.repeats++;
    }
    if (isGroup && mark !== "?") throw new UnsupportedPattern("A group is repeated.");
    this.skip("?"); // greedy or not, the same texts match
    return written + this.noRepetition();
  }

  /** Return what is written for one item, and whether it can be repeated. */
  atom() {
    const char = this.take();
    if (char === ".") return [this.flags.includes("s") ? "[^]" : "[^\\n]", true];
    if (char === "^" || char === "$") return [char, false];
    if (char === "[") return [this.set(), true];
    if ("*+?{".includes(char)) throw new UnsupportedPattern("There is nothing to repeat.");
    if (char !== "\\") return [literal(char), true];
    if (this.skip("A")) return ["^", false];
    if (this.skip("z")) return ["$", false];
    if (this.skip("b")) {
      if (this.isCaseless) throw new UnsupportedPattern("A word without case.");
      return ["\\b", false];
    }
    const [written, isClass] = this.escaped();
    return [isClass ? `[${written}]` : literal(written), true];
  }

  /** Read what follows a backslash: a character, or the inside of a class. */
  escaped() {
    const letter = this.take(); // `B` is unknown: RE2 finds it inside a character
    if (letter in CLASSES) {
      if (this.isCaseless && "wW".includes(letter)) {
        throw new UnsupportedPattern("A word without case.");
      }
      return [CLASSES[letter], true];
    }
    if (letter === "p" || letter === "P") return [this.category(letter), true];
    if (Object.hasOwn(ESCAPED, letter)) return [ESCAPED[letter], false];
    if (letter === "x") return [this.hexadecimal(), false];
    if (isLetter(letter) || letter === "_" || letter.codePointAt(0) >= 0x80) {
      throw new UnsupportedPattern(`There is no \\${letter}.`);
    }
    return [letter, false];
  }

  category(letter) {
    if (this.isCaseless) throw new UnsupportedPattern("A category without case.");
    let name = this.take();
    if (name === "{") {
      name = "";
      while (!this.skip("}")) name += this.take();
    }
    if (!CATEGORY.test(name)) throw new UnsupportedPattern(`The category ${name}.`);
    return `\\${letter}{${name}}`;
  }

  hexadecimal() {
    let digits = "";
    if (this.skip("{")) {
      while (!this.skip("}")) digits += this.take();
    } else {
      digits = this.take() + this.take();
    }
    const isGood = /^[0-9A-Fa-f]{1,6}$/.test(digits) && Number.parseInt(digits, 16) < 0xd800;
    if (!isGood) throw new UnsupportedPattern("A number of a character.");
    return String.fromCodePoint(Number.parseInt(digits, 16));
  }

  set() {
    let written = this.skip("^") ? "[^" : "[";
    for (let isFirst = true; isFirst || !this.skip("]"); isFirst = false) {
      if (this.startsWith("[:")) throw new UnsupportedPattern("A class of POSIX.");
      const [first, isClass] = this.member();
      if (isClass) {
        written += first;
        continue;
      }
      const isRange = this.next === "-" && this.chars[this.place + 1] !== "]";
      if (first === "-" && !isFirst && this.next !== "]") {
        throw new UnsupportedPattern("A dash between others.");
      }
      written += literal(first);
      if (isRange) {
        this.take();
        const [last, isRangeOfClass] = this.member();
        if (isRangeOfClass) throw new UnsupportedPattern("A range ends with a class.");
        written += `-${literal(last)}`;
      }
    }
    return `${written}]`;
  }

  member() {
    const char = this.take();
    return char === "\\" ? this.escaped() : [char, false];
  }
}

/** A compiled pattern. */
export class Pattern {
  /** @param {string} pattern that RE2 has accepted */
  constructor(pattern) {
    const reader = new Reader(pattern);
    const written = reader.alternatives();
    if (reader.place < reader.chars.length) {
      throw new UnsupportedPattern("There is a bracket too many.");
    }
    // A search starts anywhere, and each repetition ends anywhere.
    const room = (STEPS / reader.ways) ** (1 / (reader.repeats + 1));
    /** The length of the longest text that is searched here. */
    this.longest = Math.floor(room + 1e-9);
    if (this.longest < SHORTEST) throw new UnsupportedPattern("It branches too often.");
    try {
      this.expression = new RegExp(written, reader.isCaseless ? "iu" : "u");
    } catch (error) {
      throw new UnsupportedPattern(String(error));
    }
  }

  /**
   * Tell whether the pattern is found somewhere; throw TooCostly if that is unknown.
   *
   * @param {string} text
   */
  isIn(text) {
    if (text.length > this.longest) throw new TooCostly("The text is too long.");
    return this.expression.test(text);
  }
}
