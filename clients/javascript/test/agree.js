/**
 * Compare decisions, and found patterns, with those that the service's own modules made.
 *
 * `tests/test_client_javascript.py` writes the file and reads the counts.
 */

import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

import { AskService, Definitions, isUserId } from "../decider.js";
import { folded } from "../folding.js";
import { Pattern, TooCostly, UnsupportedPattern } from "../patterns.js";

const counts = { compared: 0, disagreements: 0, asked: 0, examples: [] };

function compare(wanted, decide, shown) {
  let got;
  try {
    got = decide();
  } catch (error) {
    const isLeft = [AskService, UnsupportedPattern, TooCostly].some((kind) => error instanceof kind);
    if (!isLeft) throw error;
    counts.asked++;
    return;
  }
  counts.compared++;
  if (JSON.stringify(got) === JSON.stringify(wanted)) return;
  counts.disagreements++;
  if (counts.examples.length < 10) counts.examples.push([shown, wanted, got]);
}

for await (const line of createInterface({ input: createReadStream(process.argv[2]) })) {
  const vector = JSON.parse(line);
  if ("definitions" in vector) {
    const definitions = new Definitions(vector.definitions);
    for (const [user, attributes, reason, variant] of vector.users) {
      const decide = () => {
        const got = definitions.decide(vector.name, user, attributes, vector.now);
        return [got.reason, got.variant?.id ?? null];
      };
      compare([reason, variant], decide, [vector.definitions, user, attributes]);
    }
  } else if ("pattern" in vector) {
    for (const [text, found] of vector.texts) {
      compare(found, () => new Pattern(vector.pattern).isIn(text), [vector.pattern, text]);
    }
  } else if ("folded" in vector) {
    compare(vector.folded, () => folded(vector.text), vector.text);
  } else {
    compare(vector.isId, () => isUserId(vector.id), vector.id);
  }
}
console.log(JSON.stringify(counts));
