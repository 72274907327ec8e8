"""An example of each request and of each answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("examples.json")


def examples() -> dict[str, Any]:
    """Return them: `operations` by operationId, `errors` and `failures` by status.

    An operation has a `body` if it takes one, a `query` if its example has one, and
    `answers` by status and content type. `failures` are the errors of OpenFeature's
    protocol.
    """
    read: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    for operation in read["operations"].values():
        if "answers_of" in operation:
            operation["answers"] = read["operations"][operation["answers_of"]][
                "answers"
            ]
    return read
