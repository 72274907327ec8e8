"""The provider for OpenFeature: remote by OFREP, or local with the definitions."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import (
    FlagNotFoundError,
    GeneralError,
    InvalidContextError,
    OpenFeatureError,
    ProviderNotReadyError,
    TargetingKeyMissingError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata
from openfeature.track import TrackingEventDetails

from abacus_openfeature.decisions import (
    EXISTING,
    NEW,
    OVERRIDE,
    AskService,
    Decision,
    Denial,
    Experiment,
    encoded,
)
from abacus_openfeature.memory import Memory
from abacus_openfeature.outbox import Enrolment, Outbox, moment
from abacus_openfeature.refresh import Copy
from abacus_openfeature.service import Refused, Service, Token, Unavailable

log = logging.getLogger("abacus_openfeature")

CONFIG = ".config"  # a flag with this ending has the config of a variant
NOT_ENROLLED = "not_enrolled"

# Every other decision has DEFAULT.
REASONS = {
    NEW: Reason.SPLIT,
    EXISTING: Reason.SPLIT,
    OVERRIDE: Reason.TARGETING_MATCH,
}

Context = EvaluationContext | None
Details = FlagResolutionDetails[Any]
Value = Sequence[FlagValueType] | Mapping[str, FlagValueType]


class AbacusProvider(AbstractProvider):
    """A provider that enrols users in the experiments of Abacus.

    *url* is the address of the service, and *token* has the scope `assign`; it may be
    a function, which is called for each request. With *local*, flags are evaluated in
    this process, with definitions that are refreshed every *refresh_seconds* and kept
    in *cache_file*, and enrolments are reported every *report_seconds*.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        local: bool = False,
        cache_file: str | Path | None = None,
        refresh_seconds: float = 10,
        report_seconds: float = 1,
        timeout: float = 3,
        queue_size: int = 100_000,
        remembered_users: int = 200_000,
        follow_refused: bool = True,
        shutdown_seconds: float = 5,
    ) -> None:
        super().__init__()
        self._service = Service(url, token, timeout)
        self._outbox = Outbox(
            self._service, self._follow, report_seconds, queue_size, shutdown_seconds
        )
        file = None if cache_file is None else Path(cache_file)
        self._copy = Copy(self._service, file, refresh_seconds, self._notice)
        self._is_local, self._follow_refused = local, follow_refused
        self._memory = Memory(remembered_users)
        self._is_stale = False

    def get_metadata(self) -> Metadata:
        """Return the name of the provider."""
        return Metadata(name="Abacus")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Read the definitions. Without any, all flags have their defaults for now."""
        self._outbox.open()
        if self._is_local:
            try:
                self._copy.open()
            except Unavailable as problem:
                self._is_stale = True
                self._service.warn(problem)

    def shutdown(self) -> None:
        """Send what waits, for a few seconds at most, and end the threads."""
        self._copy.close()
        self._outbox.close()

    def flush(self, seconds: float = 5) -> bool:
        """Send what waits now; tell whether the service has it within these seconds."""
        return self._outbox.flush(seconds)

    def refresh(self) -> bool:
        """Read the definitions now; tell whether they are new or as they were."""
        try:
            self._copy.refresh()
        except Unavailable:
            return False
        return True

    @property
    def counters(self) -> dict[str, int]:
        """How much was queued, sent, refused, dropped, and is waiting."""
        return self._outbox.counters()

    def _notice(self, is_good: bool, is_new: bool) -> None:
        """Tell OpenFeature's handlers what a refresh has changed."""
        if is_good is self._is_stale:
            self._is_stale = not is_good
            if is_good:
                self.emit_provider_ready(ProviderEventDetails())
            else:
                self.emit_provider_stale(ProviderEventDetails())
        if is_new:
            self.emit_provider_configuration_changed(ProviderEventDetails())

    # ------------------------------------------------------------------------
    # Events
    # ------------------------------------------------------------------------

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: Context = None,
        tracking_event_details: TrackingEventDetails | None = None,
    ) -> None:
        """Report an event to every experiment of its user, in the background.

        This never raises. The event has the `idempotencyKey` of the details'
        attributes, or one of its own.
        """
        try:
            user_id, _ = _user(evaluation_context)
            details = tracking_event_details or TrackingEventDetails()
            key = details.attributes.get("idempotencyKey") or uuid.uuid4().hex
            event: dict[str, Any] = {
                "userId": user_id,
                "metric": tracking_event_name,
                "idempotencyKey": str(key),
            }
            if details.value is not None:
                event["value"] = _plain(details.value)
            self._outbox.report(event, moment(self._service.now()))
        except Exception as error:
            self._outbox.refuse_event()
            log.warning("An event is not reported: %r", error)

    # ------------------------------------------------------------------------
    # Flags
    # ------------------------------------------------------------------------

    def _resolve(self, key: str, default: Any, context: Context) -> Details:
        try:
            return self._resolved(key, default, context)
        except ProviderNotReadyError:
            raise  # the reason was said before
        except OpenFeatureError as error:
            self._service.warn(error.error_message)
            raise

    def _resolved(self, key: str, default: Any, context: Context) -> Details:
        if not self._is_local:
            return self._remote(key, default, context)
        user_id, user = _user(context)
        if self._copy.needs_thread:
            self._copy.ensure_thread()
        definitions = self._copy.definitions
        if definitions is None:
            raise ProviderNotReadyError("There are no definitions yet.")
        is_config = key.endswith(CONFIG)
        name = key[: -len(CONFIG)] if is_config else key
        experiment = definitions.by_name.get(name)
        if experiment is None:
            if definitions.omitted:
                return self._remote(key, default, context)
            raise FlagNotFoundError(f"There is no flag {key!r}.")
        try:
            decision = self._decided(experiment, user_id, user, context)
        except AskService:
            return self._remote(key, default, context)
        return _flag(experiment, decision, is_config, default)

    def _decided(
        self, experiment: Experiment, user_id: str, user: bytes, context: Context
    ) -> Decision:
        """Return the decision for a user, and report it unless that was done."""
        general = experiment.general(user)
        if general is not None:
            return general
        pair = experiment.id, user_id
        known = self._memory.get(pair)
        if isinstance(known, str) and known in experiment.kept:
            return experiment.kept[known]
        is_denial = isinstance(known, Denial) and known.experiment is experiment
        if is_denial and known.reason:
            return Decision(known.reason)
        attributes = {}
        if context is not None and experiment.holds is not None:
            attributes = plain(context.attributes)
        now = self._service.now()
        decision = experiment.decided(user_id, user, attributes, now)
        if decision.variant is None and (is_denial or not self._follow_refused):
            return decision
        sent = None if experiment.holds is None else attributes
        if self._outbox.enrol(Enrolment(experiment.id, user_id, sent)):
            variant = decision.variant
            self._memory.put(pair, variant.id if variant else experiment.asked)
        return decision

    def _follow(self, id: str, decisions: list[dict[str, Any]]) -> None:
        """Remember what the service says of users who were reported."""
        definitions = self._copy.definitions
        experiment = definitions.by_name.get(id) if definitions else None
        for row in decisions:
            pair, variant = (id, row["userId"]), row["variantId"]
            if row["reason"] in (NEW, EXISTING):
                self._memory.put(pair, variant)
            elif variant is not None:  # an override or a winner, which is no row
                self._memory.forget(pair)
            elif experiment and isinstance(self._memory.get(pair), str):
                # This client had given the user a variant.
                self._memory.put(pair, experiment.denial(row["reason"]))

    def _remote(self, key: str, default: Any, context: Context) -> Details:
        user_id, _ = _user(context)
        attributes = plain(context.attributes) if context else {}
        body = {"context": {**attributes, "targetingKey": user_id}}
        path = f"/ofrep/v1/evaluate/flags/{quote(key, safe='')}"
        try:
            flag = self._service.post(path, body)
        except Unavailable as error:
            raise GeneralError(str(error)) from error
        except Refused as error:
            raise _refusal(error) from error
        return FlagResolutionDetails(
            value=flag.get("value", default),
            reason=Reason(flag["reason"]),
            variant=flag["variant"],
            flag_metadata=flag["metadata"],
        )

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: Context = None
    ) -> FlagResolutionDetails[bool]:
        """Return the flag; the client finds that its type is another one."""
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: Context = None
    ) -> FlagResolutionDetails[str]:
        """Return the flow of the user's variant, or else its name."""
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: Context = None
    ) -> FlagResolutionDetails[int]:
        """Return the flag; the client finds that its type is another one."""
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: Context = None
    ) -> FlagResolutionDetails[float]:
        """Return the flag; the client finds that its type is another one."""
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_object_details(
        self, flag_key: str, default_value: Value, evaluation_context: Context = None
    ) -> FlagResolutionDetails[Value]:
        """Return the config of the user's variant."""
        return self._resolve(flag_key, default_value, evaluation_context)

    async def resolve_boolean_details_async(
        self, flag_key: str, default_value: bool, evaluation_context: Context = None
    ) -> FlagResolutionDetails[bool]:
        """Return the flag without keeping the event loop waiting."""
        return await self._resolve_async(flag_key, default_value, evaluation_context)

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: Context = None
    ) -> FlagResolutionDetails[str]:
        """Return the flag without keeping the event loop waiting."""
        return await self._resolve_async(flag_key, default_value, evaluation_context)

    async def resolve_integer_details_async(
        self, flag_key: str, default_value: int, evaluation_context: Context = None
    ) -> FlagResolutionDetails[int]:
        """Return the flag without keeping the event loop waiting."""
        return await self._resolve_async(flag_key, default_value, evaluation_context)

    async def resolve_float_details_async(
        self, flag_key: str, default_value: float, evaluation_context: Context = None
    ) -> FlagResolutionDetails[float]:
        """Return the flag without keeping the event loop waiting."""
        return await self._resolve_async(flag_key, default_value, evaluation_context)

    async def resolve_object_details_async(
        self, flag_key: str, default_value: Value, evaluation_context: Context = None
    ) -> FlagResolutionDetails[Value]:
        """Return the flag without keeping the event loop waiting."""
        return await self._resolve_async(flag_key, default_value, evaluation_context)

    async def _resolve_async(self, key: str, default: Any, context: Context) -> Details:
        return await asyncio.to_thread(self._resolve, key, default, context)


def _user(context: Context) -> tuple[str, bytes]:
    """Return the id of the user, also in UTF-8; raise if there is none."""
    user_id = context.targeting_key if context else None
    if not user_id:
        raise TargetingKeyMissingError("The context has no targeting key.")
    user = encoded(user_id) if isinstance(user_id, str) else None
    if user is None:
        raise InvalidContextError("The targeting key is not the id of a user.")
    return user_id, user


def _flag(
    experiment: Experiment, decision: Decision, is_config: bool, default: Any
) -> Details:
    variant, reason = decision.variant, REASONS.get(decision.reason, Reason.DEFAULT)
    metadata: dict[str, Any] = {"experimentId": experiment.id}
    if reason is not Reason.SPLIT:
        metadata["decision"] = decision.reason
    if variant is None:
        return FlagResolutionDetails(
            default, reason=reason, variant=NOT_ENROLLED, flag_metadata=metadata
        )
    value = variant.flow_id or variant.name
    if is_config:  # a copy: the application may change it
        value = default if variant.config is None else copy.deepcopy(variant.config)
    return FlagResolutionDetails(
        value, reason=reason, variant=variant.id, flag_metadata=metadata
    )


def _refusal(error: Refused) -> OpenFeatureError:
    details, code = str(error.body.get("errorDetails")), error.body.get("errorCode")
    if code == "TARGETING_KEY_MISSING":
        return TargetingKeyMissingError(details)
    if code == "INVALID_CONTEXT":
        return InvalidContextError(details)
    if code == "FLAG_NOT_FOUND":
        return FlagNotFoundError(details)
    return GeneralError(details)


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes as the service reads them in JSON."""
    return {str(name): _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        value = int(value) if is_whole else float(value)
        return value if is_whole else _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date):  # a datetime too; without a zone it is no moment
        return value.isoformat()
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
