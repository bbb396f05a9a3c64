"""The mirror of what a supervisor holds, against a peer that answers in ways that a real one does rarely."""

import asyncio
import json
from pathlib import Path
from typing import Any

from cluster_shim.process.client import SupervisorClient
from cluster_shim.process.supervisor.core import program_version


def view(phase: str) -> dict[str, Any]:
    return {"id": "app-1", "phase": phase, "labels": {"uid": "u"}, "pid": 7}


def test_a_change_right_behind_the_first_answer_is_not_undone_by_it(tmp_path: Path) -> None:
    """Both come in one read. Else an instance that started just then would look as if it were starting for ever."""

    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        hello = {"pid": 1, "version": program_version(), "boot": "b", "limits": "none", "instances": [view("Starting")], "ports": []}
        lines = [{"id": request["id"], "ok": hello}, {"event": "instance", "instance": view("Running")}]
        writer.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    async def scenario() -> None:
        server = await asyncio.start_unix_server(answer, str(tmp_path / "supervisor.sock"))
        client = SupervisorClient(tmp_path, "/nonexistent", lambda _name: None)
        client.start()
        try:
            async with asyncio.timeout(10):
                await client.connected.wait()
            assert client.instances["app-1"].phase == "Running"
        finally:
            await client.close()
            await left.wait()
            server.close()

    asyncio.run(scenario())
