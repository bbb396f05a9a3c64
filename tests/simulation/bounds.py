"""Every queue and table of a controller that has a cap, and those that end with what they were for.

`over` is looked at every 20 seconds; `left` at quiet points, when everybody is linked to its home and to nobody else.
"""

from collections.abc import Iterator

from cluster_controller import events
from cluster_controller.moves.driver import MAX_ACTIVE, MAX_KEPT
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.protocol.frames import MAX_FRAME
from tests.simulation.world import Place

MAX_TASKS = 200  # of one controller's tunnel, for each link


def links_of(place: Place) -> list[Link]:
    assert place.controller is not None
    tunnel = place.controller.tunnel
    return [*tunnel.links.values(), *([tunnel.parent] if tunnel.parent is not None else [])]


def over(place: Place) -> Iterator[str]:
    """What is beyond its cap."""
    assert place.controller is not None
    tunnel, store = place.controller.tunnel, place.controller.store
    links = links_of(place)
    tasks = len(tunnel.tasks._tasks)
    if tasks > MAX_TASKS * (len(links) + 1):
        yield f"{tasks} tasks for {len(links)} links"
    for link in links:
        yield from _over_link(link)
    if tunnel.pending > tunnel.limits.max_pending or len(tunnel.links) > tunnel.limits.max_links:
        yield f"{tunnel.pending} connections in handshake, {len(tunnel.links)} links"
    most = len(place.world.places)
    if len(tunnel.router._routes) > most or len(tunnel.router._outdone) > most:
        yield f"{len(tunnel.router._routes)} routes, {len(tunnel.router._outdone)} outdone, in a tree of {most}"
    limits = store._limits
    if store._rows > limits.pending_rows or store._bytes > limits.pending_bytes + limits.document_bytes:
        yield f"{store._rows} rows wait for the disk"
    if len(store._journal._all) > limits.journal_rows or store.journal_bytes > limits.journal_bytes + limits.document_bytes:
        yield f"the journal keeps {len(store._journal._all)} rows of {store.journal_bytes} bytes"


def _over_link(link: Link) -> Iterator[str]:
    connection = link.connection
    limits = connection.limits
    if link.streams > 2 * limits.max_streams:
        yield f"{link} carries {link.streams} streams"
    if connection.control_waits > limits.control_queue:
        yield f"{link} holds {connection.control_waits} bytes of control frames"
    if connection._budget < 0:
        yield f"{link} has granted {-connection._budget} bytes beyond its budget"
    for stream in connection.streams.values():
        granted = stream.onward.window if stream.onward is not None else limits.send_buffer
        if len(stream.out) > granted + MAX_FRAME:
            yield f"{link}: {len(stream.out)} bytes wait in {stream}, of which {granted} may"
        if stream.buffer is not None and len(stream.buffer) > stream.window:
            yield f"{link}: {len(stream.buffer)} bytes were not read of {stream}, whose window is {stream.window}"


def left(place: Place) -> Iterator[str]:
    """What is kept of links, clusters or moves that are gone."""
    assert place.controller is not None
    controller = place.controller
    linked = {link.peer_uid for link in links_of(place)}
    links = controller.links
    for name, table in (("_counts", links._counts), ("_children", links._children), ("_leaving", links._leaving)):
        if gone := [place.world.by_uid[uid].name if uid in place.world.by_uid else uid for uid in table if uid not in linked]:
            yield f"{name[1:]} of {gone}, whose links have ended"
    if links._carried:
        yield f"{len(links._carried)} clusters are carried, and all are at home"
    for link in links_of(place):
        if link.connection.control_waits > MAX_FRAME:
            yield f"{link} holds {link.connection.control_waits} bytes of control frames, and nothing is wrong with it"
    written = sum(1 for _ in controller.store.list("own", "Event"))
    spaces = len({stored.key.namespace for stored in controller.store.list("own", "Event")})
    if written > (events.KEPT + events.BLOCK) * max(1, spaces):
        yield f"{written} Events in {spaces} namespaces"
    moves = controller.moves._moves
    if len(moves) > MAX_ACTIVE + MAX_KEPT:
        yield f"{len(moves)} moves"
