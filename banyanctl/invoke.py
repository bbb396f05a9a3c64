"""`banyan invoke`: a request to an application wherever it runs, or the same request to many clusters.

To many: one request to the controller (`openapi/front/invoke.py`), which asks each of them; one that fails or does not answer has its
own row, with the age of what is known of it and the broken hop, and spoils no other.
"""

import base64
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from banyanctl import application, kinds, objects, output
from banyanctl.cli import examples, settings
from banyanctl.client import Answer, Client, resource_path
from cluster_controller.errors import InvalidInput

PATIENCE_SECONDS = 15.0  # between two rows: beyond the time that a cluster has for its answer
BODY_BYTES = 1024 * 1024  # of each cluster's answer, in a document
TABLE_BYTES = 4096  # and in a table, where
SHOWN_CHARACTERS = 60  # are shown
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
    """The controller that is asked asks them all; its answer has a row for each, whatever became of it."""
    form = settings().output
    call: dict[str, Any] = {"labelSelector": selector, "method": verb, "path": where, "headers": dict(headers), "timeoutSeconds": timeout}
    call |= {"bodyBase64": base64.b64encode(body or b"").decode(), "maxBodyBytes": BODY_BYTES if form in ("json", "yaml") else TABLE_BYTES}
    what = f"clusters {selector}" if selector else "all clusters"
    with client.copy(timeout=timeout + PATIENCE_SECONDS) as asking, output.progress(f"asking {what}"):
        found = asking.json("POST", resource_path("banyan.dev", "v1alpha1", "invoke"), body=call)["items"]
    results = sorted((_parsed(row) for row in found), key=lambda row: str(row["cluster"]))
    output.emit({"items": results}, form, lambda: _table(results))
    if any(not 200 <= each["code"] < 400 for each in results):
        raise typer.Exit(1)


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    """The body as its own JSON where it is all of it."""
    if "json" in row.get("contentType", "") and not row.get("truncated"):
        with contextlib.suppress(ValueError, KeyError):
            return row | {"body": json.loads(row["body"])}
    return row


def _table(results: list[dict[str, Any]]) -> None:
    rows = []
    for each in results:
        body = each.get("message") or each.get("body") or ("binary" if each.get("bodyBase64") else "")
        text = " ".join((body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).split())
        short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        rows.append((each["cluster"], each["code"], f"{each['milliseconds']:.0f} ms", _age(each), short))
    output.table(("cluster", "code", "took", "age", "answer"), rows)


def _age(row: Mapping[str, Any]) -> str:
    """How old what the row says is: the answer of now, or since when its cluster is silent."""
    if row.get("age") is None:
        return "never heard"
    return f"{'≥ ' if row.get('ageAtLeast') else ''}{row['age']:.0f}s"


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
