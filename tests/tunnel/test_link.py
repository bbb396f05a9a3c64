"""What one link does in one turn of the loop."""

import asyncio
from typing import Any

from cluster_controller.clock import boottime
from cluster_controller.tunnel import Limits, Link
from cluster_controller.tunnel.link import LinkHost


class Wire:
    """Takes everything at once."""

    writable, closing = True, False

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sample(self) -> None:
        return

    def stuck_since(self) -> None:
        return

    def send(self, message: bytearray) -> None:
        self.sent.append(bytes(message))

    def close(self, code: int, reason: str) -> None:
        self.closing = True


def test_a_heartbeat_that_is_due_leaves_in_the_turn_of_its_timer_and_wakes_nobody_else() -> None:
    async def main() -> None:
        link: Any = Link(LinkHost(), Limits(), dialled=True)
        wire = Wire()
        link.attach_wire(wire)
        flushes: list[int] = []
        link._flush_soon = lambda: flushes.append(len(wire.sent))
        link.connection.liveness.last_sent = boottime() - 6.0
        link._tick()
        assert len(wire.sent) == 1
        await asyncio.sleep(0)
        assert flushes == []
        link.connection.probe()
        await asyncio.sleep(0)
        assert flushes == [1], "what is asked for between two timers has its turn"
        link._timer.cancel()

    asyncio.run(main())
