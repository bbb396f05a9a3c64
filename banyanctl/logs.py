"""`banyan logs`: what an application's instances print, wherever in the tree they run."""

import json
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer
from msgspec import Struct

from banyanctl import application, kinds, objects, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, NotFound

PODS = kinds.find("pods")
AT_ONCE = 50  # instances followed together
STDOUT = threading.Lock()


class Instance(Struct, frozen=True):
    cluster: str  # "" for the controller that is asked
    namespace: str
    name: str

    @property
    def label(self) -> str:
        return f"{self.cluster}/{self.name}" if self.cluster else self.name


Shape = Callable[[Instance, str], str]  # how a line is printed


@examples(
    "banyan logs emotion",
    "banyan logs emotion -f --tail 20",
    "banyan logs emotion --cluster edge-1",
    "banyan --at edge-1 logs pod/emotion-serve-0",
)
def logs(
    which: Annotated[str, typer.Argument(metavar="NAME|pod/NAME", help="An application, or one instance on the cluster that is asked.")],
    namespace: objects.Namespace = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is printed from now on.")] = False,
    tail: Annotated[int, typer.Option("--tail", metavar="N", help="Only the last N lines.", show_default="all that is kept")] = -1,
    cluster: Annotated[str, typer.Option("--cluster", help="Only instances on this cluster.")] = "",
    component: Annotated[str, typer.Option("--component", help="Only instances of this component.")] = "",
) -> None:
    """Print the logs of an application's instances, each line with where it comes from when there are several.

    With -o json each line is a document: {"cluster", "instance", "line"}.
    """
    form = settings().output
    query: dict[str, Any] = {"follow": "true"} if follow else {}
    if tail >= 0:
        query["tailLines"] = tail
    with settings().client() as client:
        space = namespace or client.endpoint.namespace
        found = _instances(client, which, space, cluster, component)
        if len(found) == 1:
            _print(client, found[0], query, _document if form == "json" else _bare)
            return
        _print_all(client, found, query, _document if form == "json" else _labelled, follow=follow)


def _bare(instance: Instance, line: str) -> str:
    return line


def _labelled(instance: Instance, line: str) -> str:
    return f"[{instance.label}] {line}"


def _document(instance: Instance, line: str) -> str:
    return json.dumps({"cluster": instance.cluster, "instance": instance.name, "line": line}, ensure_ascii=False)


def _instances(client: Client, which: str, namespace: str, cluster: str, component: str) -> list[Instance]:
    kind, separator, name = which.partition("/")
    if separator and kinds.find(kind) is PODS:
        return [Instance("", namespace, name)]
    name = application.name_of(which)
    document = client.json("GET", kinds.path(application.KIND, namespace, name))
    uid = document["metadata"]["uid"]
    selector = f"banyan.dev/application-uid={uid}" + (f",banyan.dev/component={component}" if component else "")
    found: list[Instance] = []
    for row in (document.get("status") or {}).get("clusters") or []:
        here = row.get("name", "") if row.get("path") else ""
        if cluster and row.get("name") != cluster:
            continue
        try:
            with client.at(here).copy() as asked:
                items = asked.items("/api/v1/pods", {"labelSelector": selector})
        except BanyanError as error:
            output.note(f"{row.get('name')}: {error}")
            continue
        found += [Instance(here, item["metadata"]["namespace"], item["metadata"]["name"]) for item in items]
    if not found:
        raise NotFound(f"no instance of application/{name} is in reach; `banyan explain {name}` says where it runs and why not elsewhere")
    return found


def _print_all(client: Client, found: list[Instance], query: dict[str, Any], shape: Shape, *, follow: bool) -> None:
    if not follow:
        for instance in found:
            _print(client, instance, query, shape)
        return
    if len(found) > AT_ONCE:
        output.note(f"following {AT_ONCE} of {len(found)} instances; choose with --cluster or --component")
    threads = [
        threading.Thread(target=_follow, args=(client, instance, query, shape), name=instance.label, daemon=True)
        for instance in found[:AT_ONCE]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _follow(client: Client, instance: Instance, query: dict[str, Any], shape: Shape) -> None:
    try:
        _print(client, instance, query, shape)
    except BanyanError as error:
        output.note(f"[{instance.label}] {error}")


def _print(client: Client, instance: Instance, query: dict[str, Any], shape: Shape) -> None:
    with client.at(instance.cluster).copy() as asked:
        for line in asked.lines(kinds.path(PODS, instance.namespace, instance.name, "log"), query):
            with STDOUT:
                sys.stdout.write(shape(instance, line.decode("utf-8", "replace").rstrip("\n")) + "\n")
                sys.stdout.flush()
