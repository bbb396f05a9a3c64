"""The caps that are looked at in every world: what is beyond one is seen, and what is kept of links that are gone."""

from tests.simulation import bounds
from tests.simulation.world import Place, World


def grown(world: World) -> tuple[Place, Place]:
    root = world.plant("root")
    edge = world.grow("edge", root, takes_children=False)
    for place in (root, edge):
        place.start()
    world.run_for(10)
    return root, edge


def test_a_tree_that_is_well_is_within_its_caps() -> None:
    with World(1) as world:
        for place in grown(world):
            assert [*bounds.over(place), *bounds.left(place)] == []


def test_bytes_that_wait_beyond_what_was_granted_are_seen() -> None:
    with World(1) as world:
        root, edge = grown(world)
        assert root.controller is not None
        connection = root.controller.tunnel.links[edge.uid].connection
        stream = next(iter(connection.streams.values()))
        stream.out += bytes(10 * connection.limits.send_buffer)
        assert [what for what in bounds.over(root) if "bytes wait in" in what]
        stream.out.clear()
        stream.buffer = bytearray(stream.window + 1)
        assert [what for what in bounds.over(root) if "were not read" in what]
        stream.buffer = None
        connection._budget = -1
        assert [what for what in bounds.over(root) if "beyond its budget" in what]


def test_what_is_kept_of_a_link_that_has_ended_is_seen() -> None:
    with World(1) as world:
        root, _ = grown(world)
        assert root.controller is not None
        root.controller.links._leaving.add("somebody")
        assert [what for what in bounds.left(root) if "links have ended" in what]
        root.controller.links._leaving.clear()
        assert list(bounds.left(root)) == []
