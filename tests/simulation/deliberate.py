"""The list of deliberate bugs, to which modules add theirs: by name, what it is, how it is put in, and which families of steps find it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock


class Mutant(NamedTuple):
    what: str
    put_in: Callable[[], contextlib.AbstractContextManager[Any]]
    families: tuple[str, ...] = ()


MUTANTS: dict[str, Mutant] = {}


def mutant(what: str, *families: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def note(function: Callable[[], Any]) -> Callable[[], Any]:
        MUTANTS[function.__name__] = Mutant(what, function, families)
        return function

    return note


def put(owner: Any, name: str, value: Any) -> contextlib.AbstractContextManager[Any]:
    assert hasattr(owner, name), f"{owner} has no {name} any more: write this mutant anew"
    return mock.patch.object(owner, name, value)


@contextlib.contextmanager
def both(*patches: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield
