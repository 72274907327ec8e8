/** Versions and moments as keys that compare as the texts do. */

const NUMBER = "(0|[1-9][0-9]*)";
const IDENTIFIER = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)";
const VERSION = new RegExp(
  `^[vV]?${NUMBER}(?:\\.${NUMBER}(?:\\.${NUMBER})?)?` +
    `(?:-(${IDENTIFIER}(?:\\.${IDENTIFIER})*))?` +
    "(?:\\+[0-9A-Za-z-]+(?:\\.[0-9A-Za-z-]+)*)?$",
);
const MOMENT = new RegExp(
  "^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]" +
    "([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?" +
    "(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))$",
);
const MONTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/**
 * Return the key of a version of SemVer 2.0, or null if the text is none.
 *
 * A leading `v` is skipped, and a missing minor or patch number is 0.
 *
 * @param {string} text
 */
export function version(text) {
  const match = text.length <= 256 ? VERSION.exec(text) : null;
  if (match === null) return null;
  return {
    numbers: [match[1], match[2] ?? "0", match[3] ?? "0"],
    before: match[4] === undefined ? null : match[4].split("."),
  };
}

const sign = (left, right) => (left < right ? -1 : left > right ? 1 : 0);

/** Compare whole numbers as texts, because a long one has no exact value here. */
const compareDigits = (left, right) =>
  sign(left.length, right.length) || sign(left, right);

const isDigits = (text) => /^[0-9]+$/.test(text);

function compareIdentifiers(left, right) {
  if (isDigits(left) && isDigits(right)) return compareDigits(left, right);
  if (isDigits(left)) return -1;
  return isDigits(right) ? 1 : sign(left, right);
}

/** Compare two versions: below 0, 0 or above 0, by section 11 of SemVer 2.0. */
export function compareVersions(left, right) {
  for (let place = 0; place < 3; place++) {
    const order = compareDigits(left.numbers[place], right.numbers[place]);
    if (order) return order;
  }
  if (left.before === null || right.before === null) {
    return sign(left.before === null, right.before === null);
  }
  const shared = Math.min(left.before.length, right.before.length);
  for (let place = 0; place < shared; place++) {
    const order = compareIdentifiers(left.before[place], right.before[place]);
    if (order) return order;
  }
  return sign(left.before.length, right.before.length);
}

/**
 * Return the key of a date with a time and a zone, or null if the text is none.
 *
 * The key has the whole seconds since 1970, and the nanoseconds after them.
 *
 * @param {string} text
 */
export function moment(text) {
  const match = MOMENT.exec(text);
  if (match === null) return null;
  const [year, month, day] = [match[1], match[2], match[3]].map(Number);
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  const isMonth = year >= 1 && month >= 1 && month <= 12;
  const days = isMonth ? MONTHS[month - 1] + (isLeap && month === 2 ? 1 : 0) : 0;
  if (day < 1 || day > days) return null;
  const past = year - 1;
  const leapDays = Math.floor(past / 4) - Math.floor(past / 100) + Math.floor(past / 400);
  let count = past * 365 + leapDays + day + (isLeap && month > 2 ? 1 : 0);
  for (let earlier = 1; earlier < month; earlier++) count += MONTHS[earlier - 1];
  const ahead = Number(match[9] ?? 0) * 60 + Number(match[10] ?? 0);
  const minutes = Number(match[4]) * 60 + Number(match[5]) - (match[8] === "-" ? -ahead : ahead);
  const seconds = ((count - 719_163) * 1440 + minutes) * 60 + Number(match[6] ?? 0);
  return { seconds, nanoseconds: Number((match[7] ?? "").padEnd(9, "0")) };
}

/** Compare two moments: below 0, 0 or above 0. */
export const compareMoments = (left, right) =>
  sign(left.seconds, right.seconds) || sign(left.nanoseconds, right.nanoseconds);
