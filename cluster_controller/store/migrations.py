"""Numbered steps from one schema to the next, each run once, in order, inside the transaction that opens the store.

A store written by a newer program is refused and left untouched. A step is never edited after a release; a change of the
tables is a new step.
"""

from collections.abc import Callable

from sqlalchemy import Connection

from cluster_controller.errors import StoreTooNew
from cluster_controller.store import schema

Step = Callable[[Connection], None]


def _first(connection: Connection) -> None:
    schema.metadata.create_all(connection, checkfirst=False)


STEPS: tuple[Step, ...] = (_first,)


def migrate(connection: Connection, name: str) -> int:
    """Bring the schema up to date; ``name`` is the store's, for the message. Returns the version that was found; 0: a new store."""
    steps = STEPS
    found = _version(connection)
    if found > len(steps):
        raise StoreTooNew(
            f"{name} was written by a newer program (schema {found}, this one knows up to {len(steps)}): "
            "run the newer version, or restore a backup made by this one"
        )
    for step in steps[found:]:
        step(connection)
    if found < len(steps):
        connection.exec_driver_sql(schema.SET_META, ("schema", str(len(steps))))
    return found


def _version(connection: Connection) -> int:
    if not connection.dialect.has_table(connection, schema.meta.name):
        return 0
    row = connection.exec_driver_sql(schema.SELECT_META, ("schema",)).fetchone()
    return int(row[0]) if row is not None else 0
