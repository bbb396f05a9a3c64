"""`banyan invoke`: a request to an application wherever it runs, or the same request to many clusters.

To many: each cluster is asked by its own connection through the tree, at most `AT_ONCE` at a time; one that fails or does not
answer has its own line and spoils no other.
"""

import base64
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from banyanctl import application, kinds, objects, output
from banyanctl.cli import examples, settings
from banyanctl.client import Answer, Client
from banyanctl.tree import cluster_pages, read_rows
from cluster_controller.errors import BanyanError, InvalidInput, NotFound

AT_ONCE = 16
CLUSTERS_LIMIT = 10_000
SHOWN_CHARACTERS = 60  # of a body, in a table
BODY_LIMIT_BYTES = 64 * 1024 * 1024


@examples(
    "banyan invoke emotion /v2/models/emotion",
    "banyan invoke emotion /v2/models/emotion/infer -d @request.json",
    "banyan invoke --clusters tier=edge emotion /v2/health/ready",
    "banyan invoke --clusters tier=edge /healthz -o json",
)
def invoke(
    target: Annotated[
        str, typer.Argument(metavar="APPLICATION|PATH", help="An application, or (with --clusters) a path of each controller's API.")
    ],
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Path of the request.")] = "/",
    clusters: Annotated[
        str, typer.Option("--clusters", metavar="SELECTOR", help="Ask every cluster with these labels; '' for all.", show_default=False)
    ] = "\0",
    data: Annotated[
        str, typer.Option("-d", "--data-body", "--body", help="Body of the request; @FILE reads it, @- from standard input.")
    ] = "",
    method: Annotated[str, typer.Option("-X", "--method", help="HTTP method.", show_default="POST with a body, else GET")] = "",
    header: Annotated[list[str] | None, typer.Option("-H", "--header", help="A header, as in 'Content-Type: application/json'.")] = None,
    namespace: objects.Namespace = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that one answer may take.")] = 10.0,
) -> None:
    """Send a request to the nearest ready instance of an application; or to many clusters, one answer each."""
    body, headers = _body(data), _headers(header or [], has_body=bool(data))
    verb = (method or ("POST" if data else "GET")).upper()
    with settings().client() as client:
        where = _path(target, path, namespace or client.endpoint.namespace)
        if clusters != "\0":
            _many(client, clusters, verb, where, body, headers, timeout)
            return
        if target.startswith("/"):
            raise InvalidInput("a path of the controllers' API is asked of clusters: add --clusters SELECTOR, or name an application")
        with client.copy(timeout=timeout) as asking, output.progress(f"waiting for {target}"):
            answer = _ask(asking, verb, where, body, headers)
    _show(answer)


def _path(target: str, path: str, namespace: str) -> str:
    if target.startswith("/"):
        return target
    return kinds.path(application.KIND, namespace, application.name_of(target), "proxy") + "/" + path.lstrip("/")


def _ask(client: Client, verb: str, where: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(where)
    full = parts.path + (f"?{parts.query}" if parts.query else "")
    return client.request(verb, full, None, body, headers)


def _show(answer: Answer) -> None:
    if settings().output in ("json", "yaml"):
        output.emit({"code": answer.status, "body": text_of(answer)}, settings().output, lambda: None)
    else:
        sys.stdout.buffer.write(answer.body)
        if sys.stdout.isatty() and not answer.body.endswith(b"\n"):
            print()
    if answer.status >= 400:
        output.note(f"the application answered {answer.status}")
        raise typer.Exit(1)


def _many(client: Client, selector: str, verb: str, where: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> None:
    rows = read_rows(cluster_pages(client, selector))[:CLUSTERS_LIMIT]
    if not rows:
        raise NotFound(f"no cluster has the labels {selector}; `banyan tree -o wide` shows labels")

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        result: dict[str, Any] = {"cluster": row["name"], "heard": row["heard"]}
        asked = client.at(row["name"]) if row["path"] else client  # only the own cluster has no way to it
        with asked.copy(timeout=timeout) as asking:
            try:
                answer = _ask(asking, verb, where, body, headers)
                result |= {"code": answer.status, "body": text_of(answer)}
            except BanyanError as error:
                result |= {"code": 0, "error": str(error)}
        return result | {"milliseconds": round((time.monotonic() - started) * 1000, 1)}

    with output.progress(f"asking {len(rows)} clusters"), ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(one, rows))
    output.emit({"items": results}, settings().output, lambda: _table(results))
    if any(not 200 <= each["code"] < 400 for each in results):
        raise typer.Exit(1)


def _table(results: list[dict[str, Any]]) -> None:
    rows = []
    for each in results:
        body = each.get("error") or each.get("body", "")
        text = " ".join((body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).split())
        short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        rows.append((each["cluster"], each["code"] or "none", f"{each['milliseconds']:.0f} ms", each["heard"], short))
    output.table(("cluster", "code", "took", "heard", "answer"), rows)


def text_of(answer: Answer) -> Any:
    """A body for a JSON document: parsed when it is JSON, text when it is text, else base64."""
    try:
        text = answer.body.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(answer.body).decode()}
    if "json" in answer.headers.get("content-type", ""):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _body(given: str) -> bytes | None:
    if not given:
        return None
    if not given.startswith("@"):
        return given.encode()
    if given == "@-":
        return sys.stdin.buffer.read(BODY_LIMIT_BYTES)
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{given[1:]} cannot be read: {error.strerror}") from error


def _headers(given: list[str], *, has_body: bool) -> dict[str, str]:
    found = {"Content-Type": "application/json"} if has_body else {}
    for line in given:
        name, separator, value = line.partition(":")
        if not separator or not name.strip():
            raise InvalidInput(f"--header: {line!r} is not 'Name: value'", "--header")
        found[name.strip().title()] = value.strip()
    return found
