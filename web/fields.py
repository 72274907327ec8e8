"""Marshmallow fields that document what they accept in OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from functools import cached_property, partial
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load, validate

from models import ID_PREFIX, NOT_IDS
from targeting import audience, orders
from web.json import (
    ERRORS,
    FORBIDDEN,
    REFUSED_TEXT,
    ROWS,
    InvalidJson,
    loads,
    moment,
    plain,
    quoted,
)

ID_LENGTH = 255

KEY = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,98}[a-z0-9])?", re.ASCII)

CONFIG_FLAG = ".config"  # a flag with this ending has the config of a variant

# A page number: with so many digits, times 100, no database's offset overflows.
WHOLE = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

LIMIT = re.compile(r"[1-9][0-9]?|100", re.ASCII)

# For OpenAPI. Blanks are listed, because each regex dialect has its own `\s`.
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
    is_storable(text)  # not every text comes as JSON: queries, lines of an import
    if not text.strip() or text.strip().casefold() in NOT_IDS:
        raise ValidationError(
            f"{quoted(text)} is not an id but the mark of a missing one."
        )


def is_plain_id(value: Any) -> bool:
    """Tell whether a value is a text that can be printed, and `Id` takes it."""
    return (
        type(value) is str
        and len(value) <= ID_LENGTH
        and value.isprintable()
        and (bare := value.strip().casefold()) != ""
        and bare not in NOT_IDS
    )


def are_plain_ids(texts: Sequence[str]) -> bool:
    """Tell whether these texts can be printed, and `Id` takes each of them.

    Neither NUL nor half a surrogate pair can be printed.
    """
    marks = set(map(str.casefold, map(str.strip, texts)))
    return (
        max(map(len, texts)) <= ID_LENGTH
        and marks.isdisjoint(NOT_IDS)
        and "" not in marks
        and "".join(texts).isprintable()
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
    if text.endswith(CONFIG_FLAG):
        raise ValidationError(
            f"A key cannot end with {CONFIG_FLAG!r}: with it, a key names a flag."
        )
    is_an_id(text)


def Name(length: int, **options: Any) -> fields.String:
    """Return a field for a text for people, which is not blank."""
    return fields.String(
        validate=[validate.Length(1, length), is_not_blank],
        metadata={"pattern": VISIBLE},
        **options,
    )


def Id(**options: Any) -> fields.String:
    """Return a field for an opaque id of 1 to 255 characters."""
    metadata = {**AN_ID, **options.pop("metadata", {})}
    return fields.String(
        validate=[validate.Length(1, ID_LENGTH), is_an_id],
        metadata=metadata,
        **options,
    )


def Key(**options: Any) -> fields.String:
    """Return a field for an experiment's key, which may replace its id anywhere."""
    affixes = f"^{ID_PREFIX}|{re.escape(CONFIG_FLAG)}$"
    refused = [{"pattern": affixes}, {"enum": sorted(NOT_IDS)}]
    return fields.String(
        validate=is_a_slug,
        metadata={"pattern": f"^{KEY.pattern}$", "not": {"anyOf": refused}},
        **options,
    )


def Text(length: int, **options: Any) -> fields.String:
    """Return a field for a text that may be null."""
    return fields.String(
        allow_none=True,
        validate=[validate.Length(max=length), is_storable],  # a form is no JSON
        **options,
    )


class Documented(fields.Field[Any]):
    """A field with its JSON Schema for OpenAPI."""

    shape: Mapping[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        metadata = {**self.shape, **options.pop("metadata", {})}
        super().__init__(metadata=metadata, **options)


class Items(fields.List[Any]):
    """A list whose length is checked before its items are.

    At most 100 wrong items are reported.
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


class Number(Documented):
    """A JSON number, read exactly; neither a text nor a boolean."""

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


DECIMALS = 340  # enough for any double as it is printed


class MetricValue(Number):
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


class Percentage(Number):
    """A number above 0, at most 100, with at most 2 decimals; stored in hundredths."""

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


class Moment(Documented):
    """A time in ISO-8601 with an offset; UTC in Python, written with a Z."""

    shape = {"type": "string", "format": "date-time"}

    FORM = re.compile(
        r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?"
        r"([Zz]|[+-]\d\d:?\d\d)",
        re.ASCII,
    )

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> datetime:
        match = self.FORM.fullmatch(value) if isinstance(value, str) else None
        if not match or (match[4] and not match[3]):
            raise ValidationError(
                "Not a time in ISO-8601 with an offset, as 2025-02-01T00:00:00Z."
            )
        day, minute, second, fraction, offset = match.groups()
        offset = "+00:00" if offset in "Zz" else f"{offset[:3]}:{offset[-2:]}"
        text = f"{day}T{minute}{second or ':00'}.{(fraction or '0')[:6]:0<6}{offset}"
        try:
            return datetime.fromisoformat(text).astimezone(timezone.utc)
        except (ValueError, OverflowError) as error:
            raise ValidationError(f"There is no such time: {error}.") from error

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> Any:
        return value and moment(value)


class Whole(Documented):
    """A whole number above 0 in a query string."""

    form, refused = WHOLE, "Not a whole number from 1 on, of at most 16 digits."
    shape = {"type": "string", "pattern": f"^({form.pattern})$"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if not isinstance(value, str) or not self.form.fullmatch(value):
            raise ValidationError(self.refused)
        return int(value)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> str:
        return str(value)


class Limit(Whole):
    """The largest number of rows of a page."""

    form, refused = LIMIT, "Not a whole number from 1 to 100."
    shape = {"type": "string", "pattern": f"^({form.pattern})$"}


class Flag(Documented):
    """`true` or `false` in a query string."""

    shape = {"type": "string", "enum": ["true", "false"]}

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> str:
        return "true" if value else "false"

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Neither true nor false.")
        return bool(value == "true")


def Search() -> fields.String:
    """Return a field for a text to search for, in a query string."""
    return fields.String(
        load_default=None,
        allow_none=False,
        validate=[validate.Length(max=200), is_storable],
    )


class JsonText(Documented):
    """A JSON object in a query string."""

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


def camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)


class Wire(Schema):
    """Snake case in Python, camel case on the wire; an unknown key is an error."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        if field_obj.data_key is None:
            field_obj.data_key = camel_case(field_name)

    @pre_load
    def _refuse_many_keys(self, data: Any, **_: Any) -> Any:
        """If more than 100 keys are unknown, report 100 of them and nothing else."""
        if isinstance(data, dict) and len(data) > len(self.fields) + ERRORS:
            known = {field.data_key for field in self.fields.values()}
            unknown = (key for key in data if key not in known)
            named = islice(unknown, ERRORS)
            raise ValidationError({key: ["Unknown field."] for key in named})
        return data


class Column(NamedTuple):
    """A field of an answer: its key, and how its value is read and written."""

    key: str
    read: Callable[[Any], Any]
    written: Callable[[Any], Any]
    is_optional: bool


class Quick(Wire):
    """A schema that writes objects in a fifth of the time, as marshmallow would.

    Marshmallow resolves every attribute by trial, and looks for hooks in every object.
    Here each object has every attribute, and no schema has a hook. One that is None is
    null, or left out if its field is in `sometimes`.
    """

    sometimes: tuple[str, ...] = ()

    @cached_property
    def _columns(self) -> list[Column]:
        return [
            Column(
                str(field.data_key),
                _reader(field, field.attribute or name),
                _writer(field),
                name in self.sometimes,
            )
            for name, field in self.dump_fields.items()
        ]

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Return the answer; a dictionary may lack keys, and is left to marshmallow."""
        if many or (many is None and self.many):
            return [self.dump(each, many=False) for each in obj]
        if isinstance(obj, dict):
            return super().dump(obj, many=False)
        answer = {}
        for key, read, written, is_optional in self._columns:
            value = read(obj)
            if value is not None:
                answer[key] = written(value)
            elif not is_optional:
                answer[key] = None
        return answer


def _reader(field: fields.Field[Any], attribute: str) -> Callable[[Any], Any]:
    """Return the function from an object to the value of a field."""
    if isinstance(field, fields.Function):
        return partial(field.serialize, "")
    return attrgetter(attribute)


def _writer(field: fields.Field[Any]) -> Callable[[Any], Any]:
    """Return the function from a value that is not None to its JSON."""
    if isinstance(field, fields.Nested):
        written: Callable[[Any], Any] = field.schema.dump
        return written
    if isinstance(field, fields.List):
        inner = _writer(field.inner)
        return lambda values: [inner(each) for each in values]
    if isinstance(field, fields.Function):
        return lambda value: value
    if type(field) is fields.String:
        return str
    return lambda value: field._serialize(value, None, None)


class Answer(Wire):
    """An answer: it always has all fields, except those in `sometimes`."""

    sometimes: tuple[str, ...] = ()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = field_name not in self.sometimes


class OwnIds(Wire):
    """The ids in a path that callers choose themselves."""

    class Meta:
        unknown = EXCLUDE

    user_id = Id()
    audience_id = Id()


class Between(Number):
    """A number between two bounds, both included."""

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


# Beyond these, the planned sizes exceed the range of a float.
SMALLEST_RATE, LARGEST_RATE = "0.000001", "0.999999"

LARGEST_VALUE = "1000000000000"


def PlannedRate(**options: Any) -> Between:
    """Return a field for a rate, or an effect on a rate, of a plan."""
    return Between(SMALLEST_RATE, LARGEST_RATE, **options)


def Power(**options: Any) -> Between:
    """Return a field for the statistical power: how likely an effect is found."""
    return Between("0.01", "0.999", load_default=Decimal("0.8"), **options)


def ConfidenceLevel(**options: Any) -> Between:
    """Return a field for a confidence level: 1 minus the rate of false alarms."""
    return Between("0.5", "0.99", load_default=Decimal("0.95"), **options)


class Integer(Between):
    """A whole number between bounds, in any notation: 20, 20.0 or 2e1."""

    shape = {"type": "integer"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Any:
        number = super()._deserialize(value, attr, data)
        if number != number.to_integral_value():
            raise ValidationError("Not a whole number.")
        return int(number)


class LevelText(Documented):
    """A confidence level in a query string, such as 0.9."""

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


def _quick(field: fields.Field[Any]) -> Callable[[Any], Any]:
    """Return the function that reads a value as `deserialize` does.

    Most values are plain ids, for which marshmallow takes several times as long.
    """
    if type(field) is not fields.String or is_an_id not in field.validators:
        return field.deserialize
    read = field.deserialize
    return lambda value: value if is_plain_id(value) else read(value)


class Reader:
    """Reads a flat object with the fields of a schema, as Schema.load would.

    It does without what Schema.load does for objects of any kind, and without wording:
    whoever gets a ValidationError asks the schema itself.
    """

    def __init__(self, schema: Schema) -> None:
        named = schema.fields.items()
        self._fields = {
            str(field.data_key): (name, _quick(field)) for name, field in named
        }
        self._required = {name for name, field in named if field.required}
        self._defaults = {
            name: field.load_default for name, field in named if not field.required
        }

    def __call__(self, document: Any) -> dict[str, Any]:
        """Return the values by name; raise ValidationError for any other object."""
        if not isinstance(document, dict):
            raise ValidationError("Not an object.")
        values = {}
        for key, value in document.items():
            if key not in self._fields:
                raise ValidationError("Unknown field.")
            name, read = self._fields[key]
            values[name] = read(value)
        if not self._required <= values.keys():
            raise ValidationError("A field is missing.")
        for name, default in self._defaults.items():
            if name not in values:
                values[name] = default() if callable(default) else default
        return values


class Row(fields.Nested):
    """One of many objects: read by a Reader, and by its schema if that refuses it."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self._reader = Reader(schema)

    def _deserialize(self, value: Any, *place: Any, **options: Any) -> Any:
        try:
            return self._reader(value)
        except ValidationError:
            return super()._deserialize(value, *place, **options)


def Rows(schema: Schema) -> Items:
    """Return a field for 1 to 10,000 rows."""
    return Items(Row(schema), required=True, validate=validate.Length(1, ROWS))


class Batch(Wire):
    """A body of up to 10 MiB, whose first field is a list of rows."""

    @property
    def rows(self) -> str:
        """Return the name of the list on the wire."""
        return str(next(iter(self.fields.values())).data_key)


def is_a_rule_tree(tree: Any) -> None:
    """Raise ValidationError with all problems of a tree, each with its path."""
    problems: dict[str, Any] = {}
    for path, message in audience.problems(tree):
        problems.setdefault(path or "_schema", []).append(message)
    if problems:
        raise ValidationError(problems)


def _leaves(operators: list[str], value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the JSON Schema of the rules with these operators."""
    properties = {} if value is None else {"value": value}
    field = {"type": "string", "maxLength": audience.FIELD_LENGTH, "pattern": STEPS}
    return {
        "type": "object",
        "properties": {"field": field, "operator": {"enum": operators}, **properties},
        "required": ["field", "operator", *properties],
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
        _leaves(
            ["semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"],
            {
                "type": "string",
                "maxLength": orders.VERSION_LENGTH,
                "pattern": f"^{orders.VERSION.pattern}$",
            },
        ),
        _leaves(["before", "after"], {"type": "string", "format": "date-time"}),
    ],
}


def RuleTree(**options: Any) -> fields.Raw:
    """Return a field for a tree of rules."""
    shape = {"allOf": [{"$ref": "#/components/schemas/RuleTree"}]}
    return fields.Raw(validate=is_a_rule_tree, metadata=shape, **options)
