"""`banyan kubeconfig`: an address and a credential in kubectl's format, for any controller of the tree or its member's own API."""

from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from banyanctl import kinds, output, reach
from banyanctl.cli import examples, settings
from banyanctl.endpoint import below, render, write_private
from cluster_controller.errors import InvalidInput


@examples(
    "banyan kubeconfig > ~/.kube/banyan && kubectl --kubeconfig ~/.kube/banyan get clusters",
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
    write: Annotated[Path | None, typer.Option("--write", metavar="FILE", help="Write it there (0600) instead of printing it.")] = None,
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
    text = render(endpoint, name or "banyan", "banyan")
    if write:
        write_private(write, text)
        output.note(f"wrote {write}; use it with: kubectl --kubeconfig {write} get applications,pods")
        return
    print(text, end="")
