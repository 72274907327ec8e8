/**
 * Unicode's full case folding, which the service compares texts without case by.
 *
 * JavaScript has lower case and upper case, and folding is lower case of upper case for
 * all letters but those of Cherokee and the dotless i. Letters that are younger than the
 * service's version of Unicode may fold here and not there.
 */

const CHEROKEE_SMALL = /[\u13f8-\u13fd\uab70-\uabbf]/;
const STAYS = /[\u0131\u13a0-\u13f5]/;

function foldedChar(char) {
  if (STAYS.test(char)) return char;
  if (CHEROKEE_SMALL.test(char)) return char.toUpperCase();
  let folded = "";
  // Each alone, because the lower case of a sigma depends on its neighbours.
  for (const one of char.toLowerCase().toUpperCase()) folded += one.toLowerCase();
  return folded;
}

/**
 * Return the text without case.
 *
 * @param {string} text
 */
export function folded(text) {
  if (/^[\0-\x7f]*$/.test(text)) return text.toLowerCase();
  let whole = "";
  for (const char of text) whole += foldedChar(char);
  return whole;
}
