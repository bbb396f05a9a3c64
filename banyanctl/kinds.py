"""Names that people type for kinds (`app`, `applications`, `application/emotion`), and the paths that they stand for."""

from collections.abc import Sequence
from difflib import get_close_matches

from banyanctl.client import resource_path
from cluster_controller.errors import InvalidInput
from cluster_controller.resources.registry import REGISTRY, ResourceType


def find(word: str) -> ResourceType:
    """The kind by plural, singular, short name or kind; InvalidInput lists them all."""
    wanted = word.lower().partition(".")[0]
    for each in REGISTRY.values():
        if wanted in (each.plural, each.singular, each.kind.lower(), *each.short_names):
            return each
    known = sorted(each.plural for each in REGISTRY.values())
    close = get_close_matches(wanted, [*known, *(each.singular for each in REGISTRY.values())], 1, 0.75)
    hint = f"did you mean {close[0]}? " if close else ""
    raise InvalidInput(f"there is no kind {word!r}; {hint}there are: {', '.join(known)}")


def of_document(document: dict[str, object], where: str) -> ResourceType:
    """The kind of a manifest; InvalidInput when this program does not know it in that version."""
    kind, version = str(document["kind"]), str(document["apiVersion"])
    found = REGISTRY.get(kind)
    if found is None or found.api_version != version:
        close = get_close_matches(kind, REGISTRY, 1)
        hint = f"; did you mean apiVersion: {found.api_version}" if found else f"; did you mean {close[0]}?" if close else ""
        raise InvalidInput(f"{where}: there is no kind {kind} in {version}{hint}", "kind")
    return found


def split(words: Sequence[str]) -> list[tuple[ResourceType, str]]:
    """`app`, `app emotion other`, `app/emotion model/emotion` → (kind, name) pairs; name "" means all."""
    if not words:
        raise InvalidInput("say which kind, for example: banyan get applications")
    if any("/" in word for word in words):
        pairs = []
        for word in words:
            kind, separator, name = word.partition("/")
            if not separator or not name:
                raise InvalidInput(f"{word!r} is not KIND/NAME; either all arguments are, or the first is a kind and the others are names")
            pairs.append((find(kind), name))
        return pairs
    found = find(words[0])
    return [(found, name) for name in words[1:]] or [(found, "")]


def path(kind: ResourceType, namespace: str, name: str = "", *rest: str) -> str:
    """``namespace`` is left out for kinds that have none; "" asks for all."""
    return resource_path(kind.group, kind.version, kind.plural, namespace if kind.namespaced else "", name, *rest)
