"""Audiences: who an experiment is for."""

from __future__ import annotations

from typing import Any

from peewee import (
    TextField,
    Value,
)

from models.errors import Conflict
from models.experiments import Experiment, next_moment
from models.history import Change
from storage.columns import Json, Utc, new_id, utcnow
from storage.engine import database
from storage.paging import Fence, Listing, Page
from storage.table import Table
from targeting import audience
from targeting.decision import COMPLETED, DRAFT, RUNNING, STOPPED


class Audience(Table):
    """The rules that decide which users an experiment is for."""

    id = TextField(primary_key=True, default=new_id("aud"))
    name = TextField()
    description = TextField(null=True)
    rule_tree = Json()
    searched = TextField()
    created_at = Utc(default=utcnow, index=True)
    updated_at = Utc(default=utcnow)

    @classmethod
    def page(cls, page: Page, search: str | None) -> Listing:
        """Return a page of audiences, newest first.

        A search matches a part of the id, the name or the description, in any case. A
        walk by cursor also shows audiences that were written after it began: whether
        they matched at its beginning is not known any more.
        """

        def query(fence: Fence | None) -> Any:
            rows = cls.select()
            if not search:
                return rows
            matches = cls.searched.contains(search.casefold())
            if fence:
                began = Value(fence.microseconds, converter=False)
                matches |= cls.updated_at >= began
            return rows.where(matches)

        order, listed = (cls.created_at, cls.id), ("audiences", search)
        return page.of(query, order, listed, Change.fence)

    @classmethod
    def define(
        cls, id: str, name: str, rule_tree: Any, description: str | None = None
    ) -> tuple[Audience, bool]:
        """Create or replace the audience; return it, and whether it is new."""
        with database.atomic():
            existing = cls.get_or_none(id=id)
            defined = existing or cls(id=id)
            defined._set(name=name, description=description, rule_tree=rule_tree)
            if existing is None:
                defined.created_at = next_moment(cls.created_at)
                defined.updated_at = defined.created_at
            defined.save(force_insert=existing is None)
        return defined, existing is None

    def revise(self, **fields: Any) -> None:
        """Write these fields; experiments that have started keep their rules."""
        with database.atomic():
            self.__data__.update(Audience.get_by_id(self.id).__data__)
            self._set(**fields)
            self.save()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        texts = (self.id, self.name, self.description or "")
        self.searched = "\n".join(texts).casefold()
        self.updated_at = utcnow()

    def tried(self, user_id: str | None, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return whether a user matches, and the rules, each with its result."""
        trace = audience.trace(self.rule_tree, user_id, attributes)
        return {"matches": trace["result"], "trace": trace}

    def experiments(self, page: Page) -> Listing:
        """Return a page of the experiments that have this audience, newest first."""
        rows = Experiment.select().where(Experiment.audience_id == self.id)
        order = (Experiment.created_at, Experiment.id)
        return page.of(lambda _: rows, order, ("audience", self.id), Change.fence)

    def remove(self) -> None:
        """Delete the audience; raise Conflict while an experiment uses it."""
        with database.atomic():
            using = Experiment.get_or_none(
                Experiment.audience_id == self.id,
                Experiment.archived_at.is_null(),
                Experiment._status_at(utcnow()).in_([DRAFT, RUNNING]),
            )
            if using:
                raise Conflict(
                    f"The {using.state} experiment {using.id} uses it.",
                    using.state,
                    [STOPPED, COMPLETED],
                )
            Audience.delete().where(Audience.id == self.id).execute()
