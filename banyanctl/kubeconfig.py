"""`banyan kubeconfig`: an address and a credential in kubectl's format, for any controller of the tree or its member's own API.

In a file that is there already the context is added, or renewed, and nothing else in it changes, also not which context is the current one.
"""

from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from banyanctl import kinds, output, reach
from banyanctl.cli import examples, settings
from banyanctl.credential import document
from banyanctl.endpoint import added, below, render, write_private
from cluster_controller.errors import InvalidInput


@examples(
    "banyan kubeconfig > ~/.kube/banyan && kubectl --kubeconfig ~/.kube/banyan get clusters",
    "banyan kubeconfig edge-k8s --write ~/.kube/config && kubectl --context edge-k8s get pods",
    "banyan kubeconfig edge-1 --banyan --write edge-1.kubeconfig && kubectl --kubeconfig edge-1.kubeconfig get pods",
)
def kubeconfig(
    name: Annotated[str, typer.Argument(metavar="[CLUSTER]", help="A cluster below.", show_default="the controller that is asked")] = "",
    banyan: Annotated[bool, typer.Option("--banyan", help="Its controller's API, not the API of the cluster that it manages.")] = False,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Namespace to use by default.")] = "",
    server: Annotated[
        str,
        typer.Option(
            "--server", metavar="URL", help="Address of the controller that is asked, as others reach it.", show_default="the one in use"
        ),
    ] = "",
    write: Annotated[Path | None, typer.Option("--write", metavar="FILE", help="Add it to this file (0600), do not print it.")] = None,
) -> None:
    """Print a kubeconfig with your own credential. Requests go through the tree, so the cluster needs no open port."""
    with settings().client() as client:
        endpoint = reach.elsewhere(client, server) if server else structs.replace(client.endpoint, advertised="")
        if name:
            cluster = client.json("GET", kinds.path(kinds.find("clusters"), "", name))
            shim = ((cluster.get("status") or {}).get("facts") or {}).get("shim", "")
            if not banyan and shim in ("", "process"):
                raise InvalidInput(
                    f"{name} has no API server of its own ({shim or 'no'} shim); ask its controller: banyan kubeconfig {name} --banyan"
                )
            endpoint = below(endpoint, name, "banyan" if banyan else "proxy")
        if namespace:
            endpoint = structs.replace(endpoint, namespace=namespace)
    context = f"{name}-banyan" if name and banyan else name or "banyan"  # both of a cluster may stand in one file
    user = f"banyan-{name}" if name else "banyan"
    if write:
        write_private(write, added(write, endpoint, context, user))
        what = "applications,pods" if banyan or not name else "pods"
        output.note(f"wrote {write}; use it with: kubectl --kubeconfig {write} --context {context} get {what}")
        return
    output.emit(document(endpoint, context, user), settings().output, lambda: print(render(endpoint, context, user), end=""))
