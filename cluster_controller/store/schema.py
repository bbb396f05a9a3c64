"""The tables and the statements, compiled once.

One table holds both the journal and the objects: a row is one change, keyed by its revision, and carries the document once.
The live state of a key is its newest row; a row stays as long as it is live, is a retained journal entry, or is the previous
state of one. So a put appends one row and nothing is written twice; the memory mirror, which knows every live revision,
makes an index by key unnecessary.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)  # fmt: skip
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.sql import ClauseElement

metadata = MetaData()
_Big = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER PRIMARY KEY is SQLite's own row id, with no second index

changes = Table(
    "changes",
    metadata,
    Column("revision", _Big, primary_key=True, autoincrement=False),
    Column("deleted", SmallInteger, nullable=False),
    Column("space", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("version", _Big, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("document", LargeBinary, nullable=False),  # empty in a delete: the state before it has its own row
    Column("sealed", SmallInteger, nullable=False),
    Column("delivered_history", Text, nullable=False),
    Column("delivered_revision", _Big, nullable=False),
    Column("source", Text, nullable=False),
    Column("start", _Big, nullable=False),
    Column("sequence", _Big, nullable=False),
)
facts = Table("facts", metadata, Column("name", Text, primary_key=True), Column("value", LargeBinary, nullable=False))
history = Table(
    "history", metadata, Column("first_revision", _Big, primary_key=True, autoincrement=False), Column("id", Text, nullable=False)
)
floors = Table("floors", metadata, Column("space", Text, primary_key=True), Column("revision", _Big, nullable=False))
meta = Table("meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

Row = tuple[Any, ...]


def _sql(statement: ClauseElement, columns: Sequence[str] | None = None) -> str:
    return str(statement.compile(dialect=sqlite_dialect(), column_keys=columns))


# Rows per INSERT. One statement for many rows, because the driver gives up the interpreter lock around each statement and
# may wait for a busy event loop to get it back: few statements keep a burst short.
INSERT_SIZES = (64, 8, 1)
INSERT_CHANGES = {
    size: _sql(insert(changes).values([{c.name: bindparam(f"{c.name}_{i}") for c in changes.c} for i in range(size)]))
    for size in INSERT_SIZES
}
DELETE_CHANGE = _sql(delete(changes).where(changes.c.revision == bindparam("at")))
SET_DELIVERED = _sql(
    update(changes)
    .where(changes.c.revision == bindparam("at"))
    .values(delivered_history=bindparam("history"), delivered_revision=bindparam("of"))
)
_fact = upsert(facts)
SET_FACT = _sql(_fact.on_conflict_do_update(index_elements=["name"], set_={"value": _fact.excluded.value}))
DELETE_FACT = _sql(delete(facts).where(facts.c.name == bindparam("at")))
_floor = upsert(floors)
SET_FLOOR = _sql(_floor.on_conflict_do_update(index_elements=["space"], set_={"revision": _floor.excluded.revision}))
INSERT_HISTORY = _sql(insert(history))
DELETE_HISTORY = _sql(delete(history).where(history.c.first_revision == bindparam("at")))
SELECT_CHANGES = _sql(select(changes).order_by(changes.c.revision))
SELECT_NEWEST = _sql(select(func.max(changes.c.revision)))
SELECT_FACTS = _sql(select(facts))
SELECT_HISTORY = _sql(select(history.c.id, history.c.first_revision).order_by(history.c.first_revision))
SELECT_FLOORS = _sql(select(floors))
_meta = upsert(meta)
SET_META = _sql(_meta.on_conflict_do_update(index_elements=["name"], set_={"value": _meta.excluded.value}))
SELECT_META = _sql(select(meta.c.value).where(meta.c.name == bindparam("at")))


def in_sizes(rows: Sequence[Row]) -> Iterable[tuple[str, Row]]:
    """The fewest INSERTs, with their parameters, that write ``rows`` in order."""
    at = 0
    for size in INSERT_SIZES:
        while len(rows) - at >= size:
            yield INSERT_CHANGES[size], tuple(value for row in rows[at : at + size] for value in row)
            at += size
