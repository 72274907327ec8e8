"""Links that are signed and end: what they open, and for how long.

A link is a JWT, signed with a key that is derived from the service's secret for its
purpose. So no link is accepted as a token of the API, no token as a link, and no link
for another purpose; and a link ends with the secret, as tokens do.
"""

from __future__ import annotations

import hmac
import time
from datetime import timedelta
from typing import Any

import jwt
from flask import current_app
from werkzeug.exceptions import Gone, NotFound

from web import keys

ALGORITHM = "HS256"

SHARE, SIGN_IN = "share", "sign-in"
"""The purposes: to show the results of one experiment, to sign a browser in."""


def are_possible() -> bool:
    """Tell whether the service has a secret: not if tokens are made elsewhere."""
    return keys.needs_secret(current_app)


def signed(purpose: str, lasts: timedelta, **claims: Any) -> str:
    """Return a link's token with these claims, which ends after this time.

    Raise WeakSecret if no link is possible.
    """
    ends = int(time.time() + lasts.total_seconds())
    claims = {**claims, "aud": purpose, "exp": ends}
    key = _key(keys.signing_secret(current_app), purpose)
    return jwt.encode(claims, key, ALGORITHM)


def opened(purpose: str, link: str) -> dict[str, Any]:
    """Return the claims of a link's token; answer 410 if it has ended, else 404."""
    if are_possible():
        for secret in filter(None, keys.verification_keys(current_app)):
            try:
                claims: dict[str, Any] = jwt.decode(
                    link,
                    _key(secret, purpose),
                    algorithms=[ALGORITHM],
                    audience=purpose,
                    options={"require": ["exp", "aud", "sub"]},
                )
                return claims
            except jwt.ExpiredSignatureError as error:
                raise Gone("This link has ended. Ask for a new one.") from error
            except (jwt.PyJWTError, ValueError, ArithmeticError, RecursionError):
                continue  # hostile text, or signed with the other secret
    raise NotFound("This link opens nothing. Perhaps a part of it is missing.")


def _key(secret: str, purpose: str) -> bytes:
    """Return the key of a purpose."""
    return hmac.digest(secret.encode(), f"abacus link: {purpose}".encode(), "sha256")
