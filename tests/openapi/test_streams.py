"""Logs and the files of Models: streamed, bounded, and let go of when the client goes."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.openapi.support import ADMIN, EDITOR, GROUP, Server, run
from tests.openapi.test_objects import failed, ok
from tests.openapi.test_watch import Client

MODELS = f"{GROUP}/namespaces/default/models"
LOG = "/api/v1/namespaces/default/pods/p1/log"
CONTENT = b"a model, as far as the API can tell" * 100
DIGEST = sha256(CONTENT).hexdigest()


async def pod(server: Server) -> None:
    labels = {"banyan.dev/application-uid": "u1", "banyan.dev/component": "serve"}
    await server.put("observed", "Pod", "p1", "default", metadata={"labels": labels}, spec={"containers": [{"name": "serve"}]})


def test_logs_come_from_the_shim_with_their_options(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await pod(server)
        server.services.logs["p1"] = [b"one\n", b"two\n"]
        answer = await server.admin.get(LOG, params={"tailLines": "2", "timestamps": "true", "container": "serve", "follow": "false"})
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "one\ntwo\n", "text/plain; charset=utf-8")
        target = server.services.opened[0]
        assert (target.kind, target.uid, target.component, target.instance) == ("logs", "u1", "serve", "p1")
        assert target.options == {"tailLines": "2", "timestamps": "true"}
        assert server.services.streams[0].aborted.is_set()

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("time", "seconds"), [("2026-11-21T11:58:20Z", "100"), ("2026-11-21T11:59:59.5Z", "1"), ("2026-11-22T00:00:00Z", "0")]
)
def test_a_time_is_asked_of_the_shim_as_an_age(tmp_path: Path, time: str, seconds: str) -> None:
    async def body(server: Server) -> None:
        await pod(server)
        server.services.logs["p1"] = [b"one\n"]
        assert (await server.admin.get(LOG, params={"sinceTime": time})).text == "one\n"
        assert server.services.opened[0].options == {"sinceSeconds": seconds}

    run(tmp_path, body)


def test_logs_that_cannot_be_had(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        failed(await server.admin.get(LOG), 404, "NotFound")
        await pod(server)
        assert "no log of p1" in failed(await server.admin.get(LOG), 400, "BadRequest")["message"]
        server.services.logs["p1"] = []
        failed(await server.admin.get(LOG, params={"container": "other"}), 400, "BadRequest")
        failed(await server.admin.get(LOG, params={"tailLines": "-1"}), 400, "BadRequest")
        failed(await server.admin.get(LOG, params={"follow": "maybe"}), 400, "BadRequest")
        for wrong in ("yesterday", "2026-01-01T00:00:00", "1"):
            assert "write it as 2026-" in failed(await server.admin.get(LOG, params={"sinceTime": wrong}), 400, "BadRequest")["message"]
        both = {"sinceTime": "2026-01-01T00:00:00Z", "sinceSeconds": "5"}
        assert "not both" in failed(await server.admin.get(LOG, params=both), 400, "BadRequest")["message"]
        failed(await server.admin.get(LOG, params={"stream": "Stderr"}), 422, "Invalid")
        failed(await server.client(EDITOR).get(LOG), 403, "Forbidden")

    run(tmp_path, body)


def test_a_followed_log_is_let_go_of_with_its_reader(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await pod(server)
        server.services.logs["p1"] = [b'{"line":1}\n']
        client = Client(server, "follow=true", path=LOG, user=ADMIN)
        assert await client.next() == {"line": 1}
        assert not server.services.streams[0].aborted.is_set()
        client.gone.set()
        async with asyncio.timeout(10):
            await server.services.streams[0].aborted.wait()
            await asyncio.wait([client.task])

    run(tmp_path, body)


def test_a_followed_log_ends_when_the_controller_stops(tmp_path: Path) -> None:
    """Else every stop would wait out its deadline for an answer that has no end."""

    async def body(server: Server) -> None:
        await pod(server)
        server.services.logs["p1"] = [b'{"line":1}\n']
        client = Client(server, "follow=true", path=LOG, user=ADMIN)
        assert await client.next() == {"line": 1}
        server.draining.set()
        await client.ended()
        assert server.services.streams[0].aborted.is_set()

    run(tmp_path, body)


def model(size: int = len(CONTENT)) -> dict[str, Any]:
    file = {"path": "model.onnx", "sha256": DIGEST, "size": size}
    metadata = {"name": "m", "namespace": "default"}
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Model",
        "metadata": metadata,
        "spec": {"versions": [{"name": "1", "files": [file]}]},
    }


def test_a_models_files_go_in_and_come_out(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        blob = f"{MODELS}/m/blobs/sha256/{DIGEST}"
        failed(await server.admin.put(blob, content=CONTENT), 404, "NotFound")
        ok(await server.admin.post(MODELS, json=model()), 201)
        failed(await server.admin.get(blob), 404, "NotFound")
        assert ok(await server.admin.put(blob, content=CONTENT), 201) == {"digest": f"sha256:{DIGEST}", "size": len(CONTENT)}
        answer = await server.admin.get(blob)
        assert answer.content == CONTENT and answer.headers["etag"] == f'"sha256:{DIGEST}"'
        rest = await server.admin.get(blob, headers={"range": "bytes=10-"})
        assert rest.status_code == 206 and rest.content == CONTENT[10:]
        assert rest.headers["content-range"] == f"bytes 10-{len(CONTENT) - 1}/{len(CONTENT)}"
        assert (await server.admin.get(blob, headers={"range": "bytes=99999-"})).status_code == 416
        head = await server.admin.head(blob)
        assert head.headers["content-length"] == str(len(CONTENT)) and not head.content
        failed(await server.client(EDITOR).put(blob, content=CONTENT), 403, "Forbidden")

    run(tmp_path, body)


def test_files_that_are_not_what_the_model_says_are_refused(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        ok(await server.admin.post(MODELS, json=model()), 201)
        blob = f"{MODELS}/m/blobs/sha256/{DIGEST}"
        wrong = failed(await server.admin.put(blob, content=b"x" * len(CONTENT)), 422, "Invalid")
        assert "not those of sha256" in wrong["message"]
        failed(await server.admin.put(blob, content=b"short"), 400, "BadRequest")

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b"x" * 1000

        failed(await server.admin.put(blob, content=endless()), 413, "RequestEntityTooLarge")
        for path in (
            f"{MODELS}/m/blobs/sha256/{'0' * 64}",
            f"{MODELS}/m/blobs/md5/{DIGEST}",
            f"{MODELS}/m/blobs",
            f"{MODELS}/m/blobs/sha256/../x",
        ):
            failed(await server.admin.get(path), 404, "NotFound")
        assert server.services.blobs == {}

    run(tmp_path, body)
