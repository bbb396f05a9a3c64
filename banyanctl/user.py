"""`banyan user`: people and programs that may ask a controller, and what they may."""

from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import structs

from banyanctl import arguments, kinds, objects, output, reach
from banyanctl.cli import Command, application, examples, settings
from banyanctl.credential import Endpoint
from banyanctl.endpoint import render, write_private
from cluster_controller.errors import InvalidInput

app = application("People and programs that may ask: create, list, revoke.")
KIND = kinds.find("users")
GROUPS = ("view", "edit", "admin")


@app.command(cls=Command)
@examples(
    "banyan user create ann --group edit --namespace shop --kubeconfig-out ann.kubeconfig",
    "banyan user create bob --group view --server https://hq.example.com:8443",
    "banyan user create ci --group edit --credential token --expires 30d",
)
def create(
    name: Annotated[str, typer.Argument(help="Name of the user, a DNS label.")],
    group: Annotated[str, typer.Option("--group", help="What they may: view, edit or admin.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only in this namespace.", show_default="in all")] = "",
    expires: Annotated[str, typer.Option("--expires", help="How long the credential is good for, as in 8h or 90d.")] = "365d",
    credential: Annotated[str, typer.Option("--credential", help="certificate, or token (a bearer token).")] = "certificate",
    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="URL",
            help="Address of the controller in the kubeconfig.",
            show_default="api_advertise, else the one in use",
        ),
    ] = "",
    target: Annotated[
        Path | None, typer.Option("--kubeconfig-out", help="Write the kubeconfig there (0600) instead of printing it.")
    ] = None,
) -> None:
    """Make a user and print a kubeconfig with their credential, which is shown this once."""
    if group not in GROUPS:
        raise InvalidInput(f"--group: {group!r} is not one of {', '.join(GROUPS)}", "--group")
    if credential not in ("certificate", "token"):
        raise InvalidInput(f"--credential: {credential!r} is neither certificate nor token", "--credential")
    grant = {"role": group, "namespace": namespace} if namespace else {"role": group}
    spec = {"grants": [grant], "expiresAfterSeconds": arguments.seconds(expires, "--expires"), "credential": credential}
    document = {
        "apiVersion": KIND.api_version,
        "kind": KIND.kind,
        "metadata": {"name": arguments.cluster_name(name)},
        "spec": spec,
    }
    with settings().client() as client:
        endpoint = reach.elsewhere(client, server)  # judged before the user is made: the credential is shown once
        made = client.json("POST", kinds.path(KIND, ""), body=document)
    text = render(credential_endpoint(endpoint, made, namespace), "banyan", name)
    if reach.is_loopback(endpoint.server):
        output.note(reach.LOOPBACK_NOTE.format(server=endpoint.server))
    if target:
        write_private(target, text)
        output.note(f"wrote {target}; use it with: banyan --kubeconfig {target} tree, or kubectl --kubeconfig {target} get clusters")
    output.emit(made, settings().output, lambda: None if target else print(text, end=""))


def credential_endpoint(endpoint: Endpoint, made: dict[str, Any], namespace: str) -> Endpoint:
    """The controller that was asked, as the new user."""
    status = made.get("status") or {}
    return structs.replace(
        endpoint,
        certificate=status.get("certificate", ""),
        key=status.get("key", ""),
        token=status.get("token", ""),
        namespace=namespace or "default",
    )


@app.command("list", cls=Command)
@examples("banyan user list", "banyan user list -o wide")
def list_users() -> None:
    """Users of the controller that is asked: what they may, and until when."""
    objects.get(["users"])


@app.command(cls=Command)
@examples("banyan user revoke ann")
def revoke(name: Annotated[str, typer.Argument(help="Name of the user.")]) -> None:
    """Refuse a user's credential from now on, here and in every cluster below."""
    with settings().client() as client:
        answer = client.json("PATCH", kinds.path(KIND, "", name), body={"spec": {"revoked": True}}, content="application/merge-patch+json")
    output.emit(answer, settings().output, lambda: print(f"user {name} revoked"))
