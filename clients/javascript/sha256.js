/**
 * SHA-256 (FIPS 180-4) of a text in UTF-8, synchronously, in any JavaScript.
 *
 * Browsers have only an asynchronous one. In Node this is also faster than
 * `createHash` for the short texts that are hashed here.
 */

/** The first 32 bits of the fractional part of a root of a prime. */
const fraction = (prime, power) => ((prime ** power % 1) * 2 ** 32) | 0;

const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n++) {
  if (PRIMES.every((prime) => n % prime)) PRIMES.push(n);
}
const ROUNDS = Int32Array.from(PRIMES, (prime) => fraction(prime, 1 / 3));
const START = Int32Array.from(PRIMES.slice(0, 8), (prime) => fraction(prime, 1 / 2));

const words = new Int32Array(64);
let bytes = new Uint8Array(4096);

/** Write a text in UTF-8 into `bytes`, and return its length. */
function encode(text) {
  const most = text.length * 3 + 72;
  if (bytes.length < most) bytes = new Uint8Array(most * 2);
  let length = 0;
  for (let place = 0; place < text.length; place++) {
    const code = text.charCodeAt(place);
    if (code < 0x80) {
      bytes[length++] = code;
    } else if (code < 0x800) {
      bytes[length++] = 0xc0 | (code >> 6);
      bytes[length++] = 0x80 | (code & 63);
    } else if (code >= 0xd800 && code < 0xdc00) {
      const whole = text.codePointAt(place++);
      bytes[length++] = 0xf0 | (whole >> 18);
      bytes[length++] = 0x80 | ((whole >> 12) & 63);
      bytes[length++] = 0x80 | ((whole >> 6) & 63);
      bytes[length++] = 0x80 | (whole & 63);
    } else {
      bytes[length++] = 0xe0 | (code >> 12);
      bytes[length++] = 0x80 | ((code >> 6) & 63);
      bytes[length++] = 0x80 | (code & 63);
    }
  }
  return length;
}

/**
 * Return the hash as eight words of 32 bits.
 *
 * @param {string} text without half surrogate pairs
 * @returns {Uint32Array}
 */
export function sha256(text) {
  const length = encode(text);
  const blocks = ((length + 8) >> 6) + 1;
  bytes.fill(0, length, blocks * 64);
  bytes[length] = 0x80;
  const bits = blocks * 64 - 4;
  bytes[bits - 1] = length >>> 29;
  bytes[bits] = length >>> 21;
  bytes[bits + 1] = length >>> 13;
  bytes[bits + 2] = length >>> 5;
  bytes[bits + 3] = length << 3;
  const state = new Uint32Array(START);
  for (let block = 0; block < blocks; block++) mix(state, block * 64);
  return state;
}

/** Mix one block of 64 bytes into the state. */
function mix(state, offset) {
  for (let n = 0; n < 16; n++, offset += 4) {
    words[n] =
      (bytes[offset] << 24) |
      (bytes[offset + 1] << 16) |
      (bytes[offset + 2] << 8) |
      bytes[offset + 3];
  }
  for (let n = 16; n < 64; n++) {
    const x = words[n - 15];
    const y = words[n - 2];
    const one = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const two = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    words[n] = (words[n - 16] + one + words[n - 7] + two) | 0;
  }
  let a = state[0] | 0;
  let b = state[1] | 0;
  let c = state[2] | 0;
  let d = state[3] | 0;
  let e = state[4] | 0;
  let f = state[5] | 0;
  let g = state[6] | 0;
  let h = state[7] | 0;
  for (let n = 0; n < 64; n++) {
    const one = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const first = (h + one + ((e & f) ^ (~e & g)) + ROUNDS[n] + words[n]) | 0;
    const two = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const second = (two + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + first) | 0;
    d = c;
    c = b;
    b = a;
    a = (first + second) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

/**
 * Return the hash as 64 hex digits.
 *
 * @param {Uint32Array} state
 * @returns {string}
 */
export function hex(state) {
  let digits = "";
  for (const word of state) digits += word.toString(16).padStart(8, "0");
  return digits;
}
