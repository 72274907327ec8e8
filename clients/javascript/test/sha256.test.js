import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { hex, sha256 } from "../sha256.js";

const LETTERS = ["a", "Z", "0", ":", "ß", "é", "用", "\u{1f600}", "\u{10ffff}", "\0", "\uffff"];

test("the hash is that of node:crypto", () => {
  let compared = 0;
  for (let length = 0; length < 400; length++) {
    for (let round = 0; round < 10; round++) {
      let text = "";
      for (let n = 0; n < length; n++) {
        text += LETTERS[(n * 7 + round * 13 + ((n * n) >> 3)) % (round === 0 ? 4 : LETTERS.length)];
      }
      const wanted = createHash("sha256").update(text).digest("hex");
      assert.equal(hex(sha256(text)), wanted);
      compared++;
    }
  }
  assert.equal(compared, 4000);
  const long = "用".repeat(100_000);
  assert.equal(hex(sha256(long)), createHash("sha256").update(long).digest("hex"));
});
