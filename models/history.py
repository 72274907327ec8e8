"""The history of an experiment."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from peewee import (
    BigAutoField,
    ForeignKeyField,
    TextField,
    fn,
)

from models.experiments import Experiment
from storage.columns import EPOCH, MICROSECOND, Json, Utc, utcnow
from storage.paging import Fence, Listing, Page
from storage.schema import Identity
from storage.table import Statement, Table

SERVICE = "abacus"  # the actor of history entries that no request caused


class Change(Table):
    """One entry of an experiment's history: who did what, and when."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment)
    at = Utc()
    actor = TextField()
    action = TextField()
    user_id = TextField(null=True)
    settings = Json()

    @classmethod
    def note(
        cls,
        experiment: Experiment,
        by: str,
        action: str,
        before: dict[str, Any],
        after: dict[str, Any],
        user_id: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Record what differs as [before, after], in the form that columns store.

        Call it within the transaction of the change.
        """
        Identity.update(revision=Identity.revision + 1).execute()
        cls.create(
            experiment=experiment.id,
            at=at or utcnow(),
            actor=by,
            action=action,
            user_id=user_id,
            settings={
                name: [before.get(name), value]
                for name, value in after.items()
                if before.get(name) != value
            },
        )

    @classmethod
    def page(cls, experiment: Experiment, page: Page) -> Listing:
        """Return a page of an experiment's history, newest first."""
        rows = cls.select().where(cls.experiment == experiment.id)
        return page.of(lambda _: rows, (cls.id,), ("history", experiment.id))

    @classmethod
    def fence(cls) -> Fence:
        """Return the present moment: the last entry so far, and the time."""
        ((last,),) = LAST_CHANGE()
        return Fence(last or 0, (utcnow() - EPOCH) // MICROSECOND)

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """The differences as (before, after), in the form that an experiment has."""
        columns = Experiment._meta.fields

        def read(name: str, value: Any) -> Any:
            return columns[name].python_value(value) if name in columns else value

        return {
            name: (read(name, before), read(name, after))
            for name, (before, after) in self.settings.items()
        }


LAST_CHANGE = Statement(lambda _: Change.select(fn.MAX(Change.id)))
