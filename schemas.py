"""The shapes on the wire, in and out."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from itertools import accumulate, islice
from types import SimpleNamespace
from typing import Any

import simplejson
from marshmallow import (
    EXCLUDE,
    Schema,
    ValidationError,
    fields,
    post_dump,
    post_load,
    pre_load,
    validate,
    validates_schema,
)

import audience
import tables
from ledger import (
    BEFORE_ENROLLMENT,
    CONFLICT,
    INVALID_STATE,
    LEEWAY,
    NOT_ENROLLED,
    TOO_MANY_METRICS,
    occurred,
)
from models import (
    CONCLUSIONS,
    FULL,
    ID_PREFIX,
    NOT_IDS,
    RUNNING,
    STATUSES,
    Change,
    Experiment,
    utcnow,
)
from paging import Page
from reports import EXPORTED

# ----------------------------------------------------------------------------
# JSON
# ----------------------------------------------------------------------------

DEPTH = 64
ERRORS = 100  # that a refusal names; after them no more are looked for
PIECE = 65_536  # bytes of a body that are looked through at a time
ROWS = 10_000  # of a batch
ROWS_DEPTH = 2  # where they stand: an object holds a list that holds them
MARKS = b"[]{},"
NO_MARKS = bytes(set(range(256)) - set(MARKS))
STEPS_OF_DEPTH = bytes.maketrans(MARKS, b"\x01\xff\x01\xff\0")  # 1, -1 or 0
# Of JSON whose escaped backslashes are taken out: NUL, or half a surrogate pair.
UNSTORABLE = re.compile(
    rb"\\u0000"
    rb"|\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)
FORBIDDEN = re.compile("[\0\ud800-\udfff]")
REFUSED_TEXT = "A text may hold neither NUL nor half a surrogate pair."


class InvalidJson(Exception):
    """A text is not JSON that every reader reads alike: a body, a query, a line."""


def loads(body: bytes, rows: str | None = None) -> Any:
    """Return what strict JSON in UTF-8 says; numbers are int or Decimal.

    With *rows*, the name of the one list that a batch has, raise ValidationError
    for more than 10,000 items in it before any of them is read.

    Raise InvalidJson for anything that two readers may read differently: duplicate
    keys, NaN, other encodings, depth over 64; ValidationError, with its path, for
    a text that holds NUL or half a surrogate pair.
    """
    if body.startswith(BOM_UTF8):  # simplejson would pass over it
        raise InvalidJson("The text begins with a byte order mark.")
    # The first backslash of a pair is no escape of what follows the pair.
    plain_body = body.replace(b"\\\\", b"..") if b"\\" in body else body
    _refuse_size(plain_body, rows)
    try:
        document = simplejson.loads(
            body.decode(),
            use_decimal=True,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise InvalidJson("The text is not UTF-8.") from error
    except (ValueError, ArithmeticError) as error:
        raise InvalidJson(f"The text is not JSON: {error}") from error
    if UNSTORABLE.search(plain_body):
        _refuse_forbidden(document)
    return document


def _refuse_size(plain_body: bytes, rows: str | None) -> None:
    """Raise InvalidJson for brackets over 64 deep, ValidationError for too many rows.

    The body is looked through in pieces and never matched as a whole: a pattern for
    a text with escapes needs a hundred times the memory of the text.
    """
    depth = commas = 0
    for marks in _marks(plain_body):
        brackets = marks.translate(STEPS_OF_DEPTH, b",")
        opened = brackets.count(b"\x01")
        has_commas = rows is not None and len(marks) > len(brackets)
        if has_commas or depth + opened > DEPTH:
            depths = _depths(brackets, depth)
            if max(depths) > DEPTH:
                raise InvalidJson(f"The JSON is nested over {DEPTH} deep.")
            if has_commas and ROWS_DEPTH in depths:
                # A comma repeats the depth that it stands at.
                repeated = _depths(marks.translate(STEPS_OF_DEPTH), depth)
                commas += repeated.count(ROWS_DEPTH) - depths.count(ROWS_DEPTH)
                if rows is not None and commas >= ROWS:
                    told = f"A batch has at most {ROWS:,} rows."
                    raise ValidationError({rows: [told]})
        depth += 2 * opened - len(brackets)


def _depths(steps: bytes, depth: int) -> list[int]:
    """Return the depth, and how deep each of these steps leads from it."""
    return list(accumulate(memoryview(steps).cast("b"), initial=depth))


def _marks(plain_body: bytes) -> Iterator[bytes]:
    """Yield brackets and commas that stand outside of texts, a piece at a time."""
    if b"\\" in plain_body:
        plain_body = plain_body.replace(b'\\"', b"..")
    is_quoted = False
    for start in range(0, len(plain_body), PIECE):
        parts = plain_body[start : start + PIECE].split(b'"')
        outside = parts[is_quoted::2]
        is_quoted ^= len(parts) % 2 == 0
        yield b"".join(outside).translate(None, NO_MARKS)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidJson(f"The key {quoted(key)} stands twice in one object.")
            seen.add(key)
    return whole


def _refuse_constant(name: str) -> None:
    raise InvalidJson(f"{name} is not JSON.")


def _refuse_forbidden(document: Any) -> None:
    path = _forbidden(document)
    if path is not None:
        nested: Any = [REFUSED_TEXT]
        for step in path:
            nested = {step: nested}
        raise ValidationError(nested)


def _forbidden(document: Any) -> list[str] | None:
    """Return the steps to the first text that no database keeps, the last one first."""
    if isinstance(document, str):
        return [] if FORBIDDEN.search(document) else None
    if isinstance(document, dict):
        if any(FORBIDDEN.search(key) for key in document):
            return []
        items: Iterable[tuple[Any, Any]] = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    else:
        return None
    for step, item in items:
        if isinstance(item, str | dict | list):
            path = _forbidden(item)
            if path is not None:
                return [*path, str(step)]
    return None


def cut(text: str, most: int = 255) -> str:
    """Return a text, or its beginning: what was sent is not sent back whole."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(text: str) -> str:
    """Return the beginning of a text, quoted and in ASCII."""
    return ascii(cut(text, 100))


def dumps(value: Any, **_: Any) -> str:
    """Return JSON text; Decimals are written digit for digit."""
    return simplejson.dumps(
        value, ensure_ascii=False, use_decimal=True, allow_nan=False, default=as_text
    )


def as_text(value: Any) -> str:
    """Return a value as text: a time and a number as the wire has them everywhere."""
    if isinstance(value, datetime):
        return moment(value)
    return str(plain(value) if isinstance(value, Decimal) else value)


def flattened(messages: Any, path: tuple[str, ...] = ()) -> Iterator[dict[str, str]]:
    """Yield one {path, message} for each of marshmallow's nested messages."""
    if isinstance(messages, dict):
        for step, inner in messages.items():
            named = path if step == "_schema" else (*path, cut(str(step)))
            yield from flattened(inner, named)
    elif isinstance(messages, list):
        for inner in messages:
            yield from flattened(inner, path)
    else:
        yield {"path": ".".join(path), "message": cut(str(messages), 1_000)}


def sentence(details: Iterable[dict[str, str]]) -> str:
    """Return these messages in one line, each behind its path."""
    return "; ".join(
        f"{one['path']}: {one['message']}" if one["path"] else one["message"]
        for one in details
    )


# ----------------------------------------------------------------------------
# Fields
# ----------------------------------------------------------------------------

KEY = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,98}[a-z0-9])?", re.ASCII)
# Of a page: of so many digits, times 100, no database's offset overflows.
WHOLE = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)
LIMIT = re.compile(r"[1-9][0-9]?|100", re.ASCII)

# What OpenAPI says of them. Blanks are written out: each dialect has its own `\s`.
BLANKS = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
VISIBLE = f"[^{BLANKS}]"
AN_ID = {
    "pattern": VISIBLE,
    "not": {"enum": sorted({*NOT_IDS, "None", "NaN", "[object Object]"})},
}


def is_not_blank(text: str) -> None:
    if not text.strip():
        raise ValidationError("A blank text says nothing.")


def is_storable(text: str) -> None:
    if FORBIDDEN.search(text):
        raise ValidationError(REFUSED_TEXT)


def is_an_id(text: str) -> None:
    is_storable(text)  # what is not JSON may hold it: a query, a line of an import
    if not text.strip() or text.strip().casefold() in NOT_IDS:
        raise ValidationError(
            f"{quoted(text)} is not an id but the mark of a missing one."
        )


def is_a_slug(text: str) -> None:
    if not KEY.fullmatch(text):
        raise ValidationError(
            "A key has 1 to 100 of a-z, 0-9, '_', '.', '-', a letter or digit at "
            "either end."
        )
    if text.startswith(ID_PREFIX):
        raise ValidationError(
            f"A key cannot begin with {ID_PREFIX!r}, as an id does: both stand in the "
            "same places."
        )
    is_an_id(text)


def Name(length: int, **options: Any) -> fields.String:
    """Return a field for a text that people read, and that is not blank."""
    return fields.String(
        validate=[validate.Length(1, length), is_not_blank],
        metadata={"pattern": VISIBLE},
        **options,
    )


def Id(**options: Any) -> fields.String:
    """Return a field for an opaque id of 1 to 255 characters."""
    return fields.String(
        validate=[validate.Length(1, 255), is_an_id],
        metadata=AN_ID,
        **options,
    )


def Key(**options: Any) -> fields.String:
    """Return a field for an experiment's slug, which stands wherever its id does."""
    refused = [{"pattern": f"^{ID_PREFIX}"}, {"enum": sorted(NOT_IDS)}]
    return fields.String(
        validate=is_a_slug,
        metadata={"pattern": f"^{KEY.pattern}$", "not": {"anyOf": refused}},
        **options,
    )


def Text(length: int, **options: Any) -> fields.String:
    """Return a field for a text that may be null."""
    return fields.String(
        allow_none=True, validate=validate.Length(max=length), **options
    )


class Told(fields.Field[Any]):
    """A field that says in OpenAPI what it takes, and what it answers."""

    shape: Mapping[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        metadata = {**self.shape, **options.pop("metadata", {})}
        super().__init__(metadata=metadata, **options)


class Items(fields.List):
    """A list whose length is checked before its items are.

    No more than 100 items that are wrong are named.
    """

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **options: Any
    ) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        for rule in self.validators:
            if isinstance(rule, validate.Length) and len(value) > (rule.max or 0):
                rule(value)
        items: list[Any] = []
        errors: dict[int, Any] = {}
        for place, item in enumerate(value):
            try:
                items.append(self.inner.deserialize(item, **options))
            except ValidationError as error:
                errors[place] = error.messages
                if len(errors) == ERRORS:
                    break
        if errors:
            raise ValidationError(errors, valid_data=items)
        return items


class Number(Told):
    """A JSON number, exact; neither a text nor true."""

    shape = {"type": "number"}

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise ValidationError("Not a number.")
        number = Decimal(value)
        if not number.is_finite():
            raise ValidationError("Not a number.")
        return number

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> Any:
        return value if value is None else plain(Decimal(value))


class Percentage(Number):
    """A number above 0, at most 100, with at most 2 decimals; kept in hundredths."""

    shape = {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 100,
        "multipleOf": Decimal("0.01"),
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Any:
        number = super()._deserialize(value, attr, data)
        if not 0 < number <= 100:
            raise ValidationError("A percentage is above 0 and at most 100.")
        if number != number.quantize(Decimal("0.01")):
            raise ValidationError("A percentage has at most 2 decimals.")
        return int(number.quantize(Decimal("0.01")) * 100)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> Any:
        return value if value is None else plain(Decimal(value) / 100)


class Moment(Told):
    """ISO-8601 with an offset; UTC inside, and with a Z on the wire."""

    shape = {"type": "string", "format": "date-time"}

    FORM = re.compile(
        r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?"
        r"([Zz]|[+-]\d\d:?\d\d)",
        re.ASCII,
    )

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> datetime:
        found = self.FORM.fullmatch(value) if isinstance(value, str) else None
        if not found or (found[4] and not found[3]):
            raise ValidationError(
                "Not a time in ISO-8601 with an offset, as 2025-02-01T00:00:00Z."
            )
        day, minute, second, fraction, offset = found.groups()
        offset = "+00:00" if offset in "Zz" else f"{offset[:3]}:{offset[-2:]}"
        text = f"{day}T{minute}{second or ':00'}.{(fraction or '0')[:6]:0<6}{offset}"
        try:
            return datetime.fromisoformat(text).astimezone(timezone.utc)
        except (ValueError, OverflowError) as error:
            raise ValidationError(f"There is no such time: {error}.") from error

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> Any:
        return value and moment(value)


class Whole(Told):
    """A whole number above 0 that arrives as a string of digits."""

    form, refused = WHOLE, "Not a whole number from 1 on, of at most 16 digits."
    shape = {"type": "string", "pattern": f"^({form.pattern})$"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if not isinstance(value, str) or not self.form.fullmatch(value):
            raise ValidationError(self.refused)
        return int(value)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> str:
        return str(value)


class Limit(Whole):
    """How many rows a page has at most."""

    form, refused = LIMIT, "Not a whole number from 1 to 100."
    shape = {"type": "string", "pattern": f"^({form.pattern})$"}


class Flag(Told):
    """True or false, spelled so."""

    shape = {"type": "string", "enum": ["true", "false"]}

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> str:
        return "true" if value else "false"

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Neither true nor false.")
        return bool(value == "true")


class JsonText(Told):
    """A JSON object that arrives as text."""

    shape = {"type": "object"}

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> dict[str, Any]:
        try:
            read = loads(value.encode(errors="surrogatepass"))
        except InvalidJson as error:
            raise ValidationError(str(error)) from error
        if not isinstance(read, dict):
            raise ValidationError("Not a JSON object.")
        return read


def plain(number: Decimal) -> int | Decimal:
    """Return the same number, to the digit, and a whole one as an int."""
    whole = number.to_integral_value()
    return int(whole) if number == whole else number


def moment(value: datetime) -> str:
    """Return the time as the wire has it: UTC, with a Z."""
    return value.isoformat().replace("+00:00", "Z")


# ----------------------------------------------------------------------------
# Shapes
# ----------------------------------------------------------------------------


def camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)


class Wire(Schema):
    """Snake case inside, camel case on the wire; an unknown key is an error."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        if field_obj.data_key is None:
            field_obj.data_key = camel_case(field_name)

    @pre_load
    def _refuse_many_keys(self, data: Any, **_: Any) -> Any:
        """Name 100 unknown keys where there are more, and look at nothing else."""
        if isinstance(data, dict) and len(data) > len(self.fields) + ERRORS:
            known = {field.data_key for field in self.fields.values()}
            unknown = (key for key in data if key not in known)
            named = islice(unknown, ERRORS)
            raise ValidationError({key: ["Unknown field."] for key in named})
        return data


class Answer(Wire):
    """What only goes out: every field is there, but for those named in `sometimes`."""

    sometimes: tuple[str, ...] = ()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = field_name not in self.sometimes


class Nothing(Wire):
    """A body that has nothing in it."""


class OwnIds(Wire):
    """Those ids in a path that callers make themselves."""

    class Meta:
        unknown = EXCLUDE

    user_id = Id()
    audience_id = Id()


class PageQuery(Wire):
    """Which page of a list: by its number, or by the cursor of the page before."""

    page = Whole(load_default=1)
    limit = Limit(load_default=20)
    cursor = fields.String(
        load_default=None,
        allow_none=False,
        validate=[validate.Length(1, 512), validate.Regexp(r"^[A-Za-z0-9_-]+\Z")],
        metadata={"pattern": "^[A-Za-z0-9_-]+$"},
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_way(self, query: dict[str, Any], original: Any, **_: Any) -> None:
        if "cursor" in original and "page" in original:
            message = "A page has a number or a cursor, not both."
            raise ValidationError(message, "cursor")

    @post_load
    def _page(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        page = Page(*(query.pop(name) for name in ("page", "limit", "cursor")))
        return {**query, "page": page}


class ExperimentsQuery(PageQuery):
    """Which page of the experiments, and which of them."""

    status = fields.String(
        load_default=None, allow_none=False, validate=validate.OneOf(STATUSES)
    )
    archived = Flag(load_default=False)


def is_small(config: dict[str, Any]) -> None:
    size = len(dumps(config).encode())
    if size > 16 * 1024:
        raise ValidationError(f"A config has at most 16 KiB, not {size} bytes.")


class VariantSchema(Wire):
    """What some of the users get."""

    id = Id(attribute="key", dump_only=True)
    name = Name(200, required=True)
    split_percentage = Percentage(attribute="split", required=True)
    flow_id = Id(allow_none=True)
    config = fields.Dict(allow_none=True, validate=is_small)


class VariantChangeSchema(VariantSchema):
    """A variant in a PATCH: one with a known id keeps what it leaves out."""

    id = Id(attribute="key")
    name = Name(200)
    split_percentage = Percentage(attribute="split")


def splits_sum_to_100(variants: Iterable[Mapping[str, Any]]) -> None:
    total = sum(variant["split"] for variant in variants)
    if total != FULL:
        raise ValidationError(
            f"The splits must sum to 100, not {plain(Decimal(total) / 100)}."
        )


def names_are_distinct(variants: Iterable[Mapping[str, Any]]) -> None:
    names = [variant["name"] for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValidationError(f"Two variants have the name {name!r}.")


def ids_are_distinct(variants: Iterable[Mapping[str, Any]]) -> None:
    ids = [variant["key"] for variant in variants if variant.get("key")]
    if len(ids) != len(set(ids)):
        raise ValidationError("Two variants have the same id.")


WHOLE_LIST = [
    validate.Length(2, 20, error="An experiment has 2 to 20 variants."),
    splits_sum_to_100,
    names_are_distinct,
]


def whole_variants(variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the list if it can stand as a whole; raise ValidationError if not.

    What a PATCH leaves out is known only when it has met the stored list.
    """
    for place, variant in enumerate(variants):
        for name, told in (("name", "name"), ("split", "splitPercentage")):
            if name not in variant:
                missing = {told: ["Missing data for required field."]}
                raise ValidationError({"variants": {place: missing}})
    for rule in (splits_sum_to_100, names_are_distinct):
        try:
            rule(variants)
        except ValidationError as error:
            raise ValidationError({"variants": error.messages}) from error
    return variants


class Between(Number):
    """A number from one bound to another, both included."""

    def __init__(self, low: str, high: str, **options: Any) -> None:
        self.low, self.high = Decimal(low), Decimal(high)
        bounds = {"minimum": plain(self.low), "maximum": plain(self.high)}
        metadata = {**bounds, **options.pop("metadata", {})}
        super().__init__(metadata=metadata, **options)

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> Decimal:
        number = super()._deserialize(value, attr, data)
        if not self.low <= number <= self.high:
            raise ValidationError(f"Must be from {self.low} to {self.high}.")
        return number


class Integer(Between):
    """A whole number between bounds, however it is written: 20, 20.0 or 2e1."""

    shape = {"type": "integer"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Any:
        number = super()._deserialize(value, attr, data)
        if number != number.to_integral_value():
            raise ValidationError("Not a whole number.")
        return int(number)


# Beyond these, sizes leave the numbers that a float holds.
LEAST, MOST = "0.000001", "0.999999"


def Rate(**options: Any) -> Between:
    """Return a field for a rate, or an effect on one, that can be planned with."""
    return Between(LEAST, MOST, **options)


def Power(**options: Any) -> Between:
    """Return a field for how surely an effect that is there is found."""
    return Between("0.01", "0.999", load_default=Decimal("0.8"), **options)


def ConfidenceLevel(**options: Any) -> Between:
    """Return a field for what an interval holds: 1 minus the false alarms."""
    return Between("0.5", "0.99", load_default=Decimal("0.95"), **options)


class PlanSchema(Wire):
    """What the experiment was planned to find."""

    baseline_rate = Rate(required=True)
    minimum_effect = Rate(required=True, metadata={"description": "absolute"})
    power = Power()
    confidence_level = ConfidenceLevel()

    @validates_schema(skip_on_field_errors=True)
    def _within_one(self, plan: dict[str, Any], **_: Any) -> None:
        if plan["baseline_rate"] + plan["minimum_effect"] > Decimal(MOST):
            raise ValidationError(f"No rate is above {MOST}.", "minimumEffect")


class SizeSchema(Wire):
    """What an experiment should find; its effect absolute or relative."""

    baseline_rate = Rate(required=True)
    minimum_effect = Rate(load_default=None)
    relative_effect = Between(LEAST, "1000000", load_default=None)
    power = Power()
    confidence_level = ConfidenceLevel()
    variants = Integer("2", "20", load_default=None)
    splits = Items(Percentage(), load_default=None, validate=validate.Length(2, 20))
    users_per_day = Integer("1", "1000000000000", load_default=None)

    @validates_schema(skip_on_field_errors=True)
    def _one_effect(self, size: dict[str, Any], **_: Any) -> None:
        absolute, relative = size["minimum_effect"], size["relative_effect"]
        if (absolute is None) == (relative is None):
            raise ValidationError("Give either minimumEffect or relativeEffect.")
        name = "minimumEffect" if relative is None else "relativeEffect"
        effect = absolute or size["baseline_rate"] * relative
        if not Decimal(LEAST) <= effect <= Decimal(MOST) - size["baseline_rate"]:
            told = f"The effect must be at least {LEAST}, and no rate above {MOST}."
            raise ValidationError(told, name)

    @validates_schema(skip_on_field_errors=True)
    def _one_split(self, size: dict[str, Any], **_: Any) -> None:
        if size["splits"] is None:
            return
        if size["variants"] is not None:
            raise ValidationError("Give either variants or splits.", "variants")
        splits_sum_to_100([{"split": split} for split in size["splits"]])

    @post_load
    def _split_evenly(self, size: dict[str, Any], **_: Any) -> dict[str, Any]:
        variants = size.pop("variants") or 2
        return {**size, "splits": size["splits"] or [1] * variants}


class RehearsalSchema(Wire):
    """What to rehearse a draft with; a run is one whole experiment."""

    participants = Integer("2", "1000000", required=True)
    baseline_rate = Between("0", "1", required=True)
    effect = Between("-1", "1", load_default=Decimal(0))
    looks = Integer("1", "1000", load_default=20)
    runs = Integer("1", "10000", load_default=200)
    seed = Integer("0", "2147483647", load_default=0)

    @validates_schema(skip_on_field_errors=True)
    def _possible(self, rehearsal: dict[str, Any], **_: Any) -> None:
        if not 0 <= rehearsal["baseline_rate"] + rehearsal["effect"] <= 1:
            raise ValidationError("A rate is from 0 to 1.", "effect")
        if rehearsal["looks"] > rehearsal["participants"]:
            raise ValidationError("There are more looks than participants.", "looks")


class AnalysisSchema(Wire):
    """Which metric to analyse, how wide the intervals shown are, and as of when."""

    metric = Id(load_default=None, allow_none=True)
    confidence_level = ConfidenceLevel()
    as_of = Moment(load_default=None, allow_none=True)


class Level(Told):
    """A confidence level that arrives in a query, as 0.9."""

    form = re.compile(r"0\.([5-8][0-9]{0,15}|9([0-8][0-9]{0,14}|90{0,14})?)")
    shape = {"type": "string", "pattern": f"^({form.pattern})$"}

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> Decimal:
        if not isinstance(value, str) or not self.form.fullmatch(value):
            raise ValidationError("Not a number from 0.5 to 0.99.")
        return Decimal(value)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> str:
        return str(value)


class AnalysisQuery(Wire):
    """What an analysis is asked for where the request has no body."""

    metric = Id(load_default=None, allow_none=False)
    confidence_level = Level(load_default=Decimal("0.95"))
    as_of = Moment(load_default=None, allow_none=False)


class ResultsQuery(Wire):
    """Which part of the counts, and as of when."""

    metric = Id(load_default=None, allow_none=False)
    as_of = Moment(load_default=None, allow_none=False)
    granularity = fields.String(
        load_default=None, allow_none=False, validate=validate.OneOf(["day"])
    )


def is_replay(query: dict[str, Any]) -> bool:
    """Tell whether results need every row read again, and not the tallies alone."""
    return bool(query.get("granularity") or query.get("as_of"))


def is_ahead(time: datetime) -> None:
    if time <= utcnow():
        raise ValidationError("The endDate must be in the future.")


class ExperimentSchema(Wire):
    """A test of variants against each other."""

    id = fields.String(dump_only=True)
    key = Key()
    name = Name(200, required=True)
    description = Text(10_000)
    hypothesis = Text(10_000)
    type = fields.String(load_default="ab_test", validate=validate.OneOf(["ab_test"]))
    status = fields.String(
        dump_only=True, attribute="state", metadata={"enum": STATUSES}
    )
    audience_id = Id(allow_none=True)
    audience_snapshot_at = Moment(dump_only=True, allow_none=True)
    exclusion_group = Id(allow_none=True)
    primary_metric = Id(load_default="conversion")
    plan = fields.Nested(PlanSchema(), allow_none=True)
    traffic_percentage = Percentage(attribute="traffic", load_default=FULL)
    start_date = Moment(dump_only=True, allow_none=True)
    end_date = Moment(allow_none=True, validate=is_ahead)
    completed_at = Moment(dump_only=True, allow_none=True)
    archived_at = Moment(dump_only=True, allow_none=True)
    conclusion = fields.String(
        dump_only=True, allow_none=True, metadata={"enum": [*CONCLUSIONS, None]}
    )
    winner_variant_id = fields.String(dump_only=True, allow_none=True)
    note = fields.String(dump_only=True, allow_none=True)
    created_at = Moment(dump_only=True)
    updated_at = Moment(dump_only=True)
    variants = Items(fields.Nested(VariantSchema()), required=True, validate=WHOLE_LIST)
    count = fields.Function(
        lambda experiment: {"assignments": experiment.participants},
        data_key="_count",
        dump_only=True,
        metadata={
            "type": "object",
            "properties": {"assignments": {"type": "integer", "minimum": 0}},
            "required": ["assignments"],
        },
    )


class ExperimentChangeSchema(ExperimentSchema):
    """What a PATCH may hold: only the fields given change."""

    name = Name(200)
    type = fields.String(validate=validate.OneOf(["ab_test"]))
    primary_metric = Id()
    traffic_percentage = Percentage(attribute="traffic")
    variants = Items(
        fields.Nested(VariantChangeSchema()),
        validate=[
            validate.Length(2, 20, error="An experiment has 2 to 20 variants."),
            ids_are_distinct,
        ],
    )


class WarnedExperimentSchema(ExperimentSchema):
    """An experiment with what its maker should know."""

    warnings = fields.Function(
        lambda experiment: warnings(experiment),
        dump_only=True,
        metadata={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                },
                "required": ["code", "message"],
            },
        },
    )


def warnings(experiment: Experiment) -> list[dict[str, str]]:
    """Return what the maker of an experiment should know."""
    return [
        {"code": code, "message": message} for code, message in _warnings(experiment)
    ]


def _warnings(experiment: Experiment) -> Iterator[tuple[str, str]]:
    id = experiment.audience_id
    if id is not None and not experiment.has_audience:
        yield (
            "AUDIENCE_NOT_DEFINED",
            f"The audience {id!r} is not defined here: the caller decides who is in.",
        )
    if experiment.state != RUNNING:
        return
    flows = [variant.flow_id for variant in experiment.variants if variant.flow_id]
    for flow in dict.fromkeys(flows):
        if flows.count(flow) > 1:
            yield (
                "FLOW_IN_TWO_VARIANTS",
                f"The flow {flow!r} is in two variants: they may not differ at all.",
            )
    for other, flow in experiment.running_with(flows):
        yield (
            "FLOW_IN_TWO_EXPERIMENTS",
            f"The flow {flow!r} is in the running experiment {other} too: its users "
            "get it whatever this one deals.",
        )


class ConclusionSchema(Wire):
    """How an experiment ended."""

    conclusion = fields.String(required=True, validate=validate.OneOf(CONCLUSIONS))
    winner_variant_id = Id(load_default=None, allow_none=True)
    note = Text(10_000, load_default=None)


class UserSchema(Wire):
    """A user, and what the caller knows of them."""

    user_id = Id(required=True)
    attributes = fields.Dict(load_default=dict)


class ExplainQuery(Wire):
    """Whether to explain, and what is known of the user."""

    explain = Flag(load_default=False)
    attributes = JsonText(load_default=dict)


def Rows(schema: Schema) -> Items:
    """Return a field for 1 to 10,000 rows."""
    return Items(
        fields.Nested(schema), required=True, validate=validate.Length(1, ROWS)
    )


class Batch(Wire):
    """A list of rows, and nothing beside it; its body may have 10 MiB."""

    @property
    def rows(self) -> str:
        """Return what the list is named on the wire."""
        (name,) = (str(field.data_key) for field in self.fields.values())
        return name


class UsersSchema(Batch):
    """Users to enrol, in one transaction."""

    users = Rows(UserSchema())


def OfVariant(**options: Any) -> fields.String:
    """Return a field of the variant, which is null where there is none."""
    return fields.String(dump_default=None, allow_none=True, **options)


class DecisionSchema(Answer):
    """Which variant a user gets, if any, and why."""

    experiment_id = fields.String()
    user_id = fields.String()
    enrolled = fields.Function(
        lambda decision: decision.variant is not None, metadata={"type": "boolean"}
    )
    reason = fields.String()
    variant_id = fields.String(
        attribute="variant.key", dump_default=None, allow_none=True
    )
    variant_name = fields.String(
        attribute="variant.name", dump_default=None, allow_none=True
    )
    flow_id = fields.String(
        attribute="variant.flow_id", dump_default=None, allow_none=True
    )
    config = fields.Raw(
        attribute="variant.config",
        dump_default=None,
        allow_none=True,
        metadata={"type": "object"},
    )
    assigned_at = Moment(allow_none=True)


class RangeSchema(Answer):
    """Consecutive buckets, both ends included, and the variant that has them."""

    sometimes = ("variant_id",)  # what lets a user in deals no variant

    first = fields.Integer()
    last = fields.Integer()
    variant_id = fields.String()


class DrawSchema(Answer):
    """One draw: SHA-256 of `salt:userId`, the bucket it gives, the range it is in."""

    salt = fields.String()
    hash = fields.String(attribute="sha256")
    bucket = fields.Integer()
    ranges = fields.List(fields.Nested(RangeSchema()))
    inside = fields.Boolean()
    command = fields.String()


class ReceiptOfAssignmentSchema(DrawSchema):
    """The draw that deals the variant, and before it what let the user in."""

    variant_id = fields.String()
    entry = fields.Nested(DrawSchema())
    audience_id = fields.String(allow_none=True)
    audience_snapshot_at = Moment(allow_none=True)
    rules = fields.Raw(allow_none=True, metadata={"type": "object"})


class ExplainedSchema(DecisionSchema):
    """A decision, and where it was asked for its receipt."""

    sometimes = ("receipt",)

    receipt = fields.Nested(ReceiptOfAssignmentSchema())


def explained(experiment: Experiment, explanation: Any) -> SimpleNamespace:
    """Return a decision with its receipt, as ExplainedSchema takes it."""
    entry, split = explanation.receipt
    dealt = [variant.key for variant in experiment.variants]
    ranges = [
        {**each._asdict(), "variant_id": key}
        for each, key in zip(split.ranges, dealt, strict=True)
    ]
    receipt = {
        **split._asdict(),
        "ranges": ranges,
        "inside": True,
        "variant_id": dealt[split.position],
        "entry": {**entry._asdict(), "inside": entry.position is not None},
        "audience_id": experiment.audience_id,
        "audience_snapshot_at": experiment.audience_snapshot_at,
        "rules": explanation.rules,
    }
    return SimpleNamespace(**explanation.decision._asdict(), receipt=receipt)


class MembershipSchema(Answer):
    """An experiment that a user is in."""

    experiment_id = fields.String()
    experiment_key = fields.String()
    experiment_name = fields.String()
    variant_id = fields.String()
    variant_name = fields.String()
    flow_id = fields.String(allow_none=True)
    assigned_at = Moment()


DECIMALS = 340  # what it takes to write any double exactly as it is printed


class Value(Number):
    """A number from -1e12 to 1e12."""

    shape = {"type": "number", "minimum": -(10**12), "maximum": 10**12}

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> Decimal:
        number = super()._deserialize(value, attr, data)
        if not -(10**12) <= number <= 10**12:
            raise ValidationError("A value is from -1e12 to 1e12.")
        if int(number.as_tuple().exponent) < -DECIMALS:
            raise ValidationError(f"A value has at most {DECIMALS} decimals.")
        return number


def is_not_to_come(time: datetime) -> None:
    if time > utcnow() + timedelta(minutes=5):
        raise ValidationError("The time is more than 5 minutes ahead.")


class EventSchema(Wire):
    """Something that a user did."""

    user_id = Id(required=True)
    metric = Id(load_default=None)
    value = Value(load_default=None, allow_none=True)
    occurred_at = Moment(load_default=None, allow_none=True, validate=is_not_to_come)
    idempotency_key = Id(load_default=None, allow_none=True)


class ConversionsSchema(Batch):
    """Conversions to book, in one transaction."""

    conversions = Rows(EventSchema())


class EventsSchema(Batch):
    """Events to book in every experiment that their users are in."""

    events = Rows(EventSchema())


class ImportLineSchema(Schema):
    """One line of an import: an assignment, and the conversion it may carry."""

    user_id = Id(required=True)
    variant = fields.String(required=True)
    timestamp = Moment(required=True, validate=is_not_to_come)
    converted_at = Moment(load_default=None, allow_none=True, validate=is_not_to_come)
    metric = Id(load_default=None, allow_none=True)
    value = Value(load_default=None, allow_none=True)
    idempotency_key = Id(load_default=None, allow_none=True)

    @validates_schema(skip_on_field_errors=True)
    def _in_order(self, line: dict[str, Any], **_: Any) -> None:
        converted_at = line["converted_at"]
        if converted_at is None:
            return
        if occurred(converted_at, line["timestamp"]) is None:
            told = f"It is over {LEEWAY.seconds} seconds before the timestamp."
            raise ValidationError(told, "converted_at")


REASONS = (
    *(NOT_ENROLLED, BEFORE_ENROLLMENT, TOO_MANY_METRICS),
    *(CONFLICT, INVALID_STATE),
)
"""Why an event is rejected."""


class ReceiptSchema(Answer):
    """What became of an event in one experiment."""

    experiment_id = fields.String()
    status = fields.String(metadata={"enum": ["accepted", "duplicate", "rejected"]})
    reason = fields.String(allow_none=True, metadata={"enum": [*REASONS, None]})
    user_id = fields.String()
    variant_id = fields.String(allow_none=True)
    metric = fields.String()
    value = Value(allow_none=True)
    occurred_at = Moment()
    idempotency_key = fields.String(allow_none=True)


class BookedSchema(Answer):
    """What became of each event of a batch, in each of its user's experiments."""

    data = fields.List(fields.List(fields.Nested(ReceiptSchema())))


# ----------------------------------------------------------------------------
# Audiences, overrides, history, erasure
# ----------------------------------------------------------------------------


def is_a_rule_tree(tree: Any) -> None:
    """Raise ValidationError with all that is wrong with a tree, each with its path."""
    found: dict[str, Any] = {}
    for path, message in audience.problems(tree):
        found.setdefault(path or "_schema", []).append(message)
    if found:
        raise ValidationError(found)


def _leaves(operators: list[str], value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the JSON Schema of the rules with these operators."""
    given = {} if value is None else {"value": value}
    field = {"type": "string", "maxLength": audience.FIELD_LENGTH, "pattern": STEPS}
    return {
        "type": "object",
        "properties": {"field": field, "operator": {"enum": operators}, **given},
        "required": ["field", "operator", *given],
        "additionalProperties": False,
    }


STEPS = rf"^[^.]*[^.{BLANKS}][^.]*(\.[^.]*[^.{BLANKS}][^.]*)*$"
RULE_TREE = {
    "description": "One rule, or a group of them. Groups stand at most "
    f"{audience.DEPTH} deep and hold {audience.RULES} rules in all; the patterns of "
    "`regex` are RE2's.",
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "logicalOperator": {"enum": ["AND", "OR"]},
                "rules": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"$ref": "#/components/schemas/RuleTree"},
                },
            },
            "required": ["logicalOperator", "rules"],
            "additionalProperties": False,
        },
        _leaves(["eq", "neq"], {}),
        _leaves(["gt", "lt", "gte", "lte"], {"type": "number"}),
        _leaves(
            ["contains", "not_contains"], {"type": ["string", "number", "boolean"]}
        ),
        _leaves(["in", "not_in"], {"type": "array"}),
        _leaves(["exists", "not_exists"], None),
        _leaves(["regex"], {"type": "string", "maxLength": audience.PATTERN_LENGTH}),
        _leaves(["starts_with", "ends_with"], {"type": "string"}),
    ],
}


def RuleTree(**options: Any) -> fields.Raw:
    """Return a field for a tree of rules."""
    shape = {"allOf": [{"$ref": "#/components/schemas/RuleTree"}]}
    return fields.Raw(validate=is_a_rule_tree, metadata=shape, **options)


class AudienceSchema(Wire):
    """Whom an experiment is for."""

    id = fields.String(dump_only=True)
    name = Name(200, required=True)
    description = Text(10_000)
    rule_tree = RuleTree(required=True)
    created_at = Moment(dump_only=True)
    updated_at = Moment(dump_only=True)


class AudienceChangeSchema(AudienceSchema):
    """What a PATCH of an audience may hold: only the fields given change."""

    name = Name(200)
    rule_tree = RuleTree()


class AudiencesQuery(PageQuery):
    """Which page of the audiences, and which of them."""

    search = fields.String(
        load_default=None,
        allow_none=False,
        validate=[validate.Length(max=200), is_storable],
    )


class TrialSchema(Wire):
    """Somebody to try an audience on."""

    user_id = Id(load_default=None)
    attributes = fields.Dict(load_default=dict)


class TrialResultSchema(Answer):
    """Whether somebody is meant, and the truth of each rule."""

    matches = fields.Boolean()
    trace = fields.Raw(metadata={"type": "object"})


class OverrideSchema(Wire):
    """A variant forced for one user."""

    experiment_id = fields.String(dump_only=True)
    user_id = fields.String(dump_only=True)
    variant_id = Id(required=True, attribute="variant")


class ChangeSchema(Answer):
    """One thing that was done to an experiment."""

    at = Moment()
    subject = fields.String(attribute="actor")
    action = fields.String()
    user_id = fields.String(allow_none=True)
    changes = fields.Function(
        lambda change: changes(change), metadata={"type": "object"}
    )


class SettingsSchema(ExperimentSchema):
    """What can be changed of an experiment, each as its answers have it."""

    class Meta:
        exclude = ("count",)

    status = fields.String()
    variant_id = fields.String()


SETTINGS = SettingsSchema()


def changes(change: Change) -> dict[str, dict[str, Any]]:
    """Return what an entry of the history changed: `{"name": {"from", "to"}}`."""
    before, after = (
        SETTINGS.dump({name: pair[place] for name, pair in change.changes.items()})
        for place in (0, 1)
    )
    return {name: {"from": before[name], "to": after[name]} for name in after}


class CountedSchema(Answer):
    """What an experiment counts in all."""

    participants = fields.Integer()
    conversions = fields.Integer()
    events = fields.Integer()


class ErasedSchema(Answer):
    """What one experiment counted before a person was erased, and after."""

    experiment_id = fields.String()
    before = fields.Nested(CountedSchema())
    after = fields.Nested(CountedSchema())


class MentionSchema(Answer):
    """A text that somebody wrote, and in which the id still stands."""

    resource = fields.String(metadata={"enum": ["audience", "experiment"]})
    id = fields.String()
    field = fields.String()


class ErasureSchema(Answer):
    """Where a person was erased, and, if anywhere, where the id still stands."""

    sometimes = ("mentions",)

    before = fields.Nested(CountedSchema())
    after = fields.Nested(CountedSchema())
    experiments = fields.List(fields.Nested(ErasedSchema()))
    mentions = fields.List(fields.Nested(MentionSchema()))
    file_rewritten = fields.Boolean()
    log_emptied = fields.Boolean()

    @post_dump
    def _leave_out_none(self, told: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {name: told[name] for name in told if name != "mentions" or told[name]}


def csv_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield exported rows as CSV, with a header line."""
    return tables.csv_lines(EXPORTED, map(_exported, rows))


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield exported rows as JSON, an object a line."""
    return (f"{dumps(_exported(row))}\n" for row in rows)


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: row[name] and moment(row[name]) for name in TIMES}
    value = row["value"]
    return {**row, **times, "value": value if value is None else plain(value)}


TIMES = ("timestamp", "converted_at")


class ExportQuery(Wire):
    """The form of an export."""

    format = fields.String(
        load_default="csv", validate=validate.OneOf(["csv", "ndjson"])
    )
