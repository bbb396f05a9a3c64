"""`banyan shim verify`: run the contract suite against anybody's shim."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from banyanctl import output
from banyanctl.cli import Command, application, examples, settings
from cluster_controller.errors import InvalidInput, NotFound, Unreachable

if TYPE_CHECKING:
    from cluster_shim.verify import Result

app = application("Check a shim against the contract.")

CredentialFile = Annotated[Path | None, typer.Option(help="PEM, for a shim that is spoken to over TCP.", metavar="FILE")]


@app.callback()
def group() -> None:
    """Check a shim against the contract."""


@app.command(cls=Command)
@examples(
    "banyan shim verify unix:/run/my-shim.sock --yes",
    "banyan shim verify shim.example.com:9443 --ca ca.pem --certificate me.pem --key me.key --yes",
)
def verify(
    address: Annotated[str, typer.Argument(help="unix:/PATH, or HOST:PORT with --ca, --certificate and --key.")],
    yes: Annotated[bool, typer.Option("--yes", help="Yes, everything that runs on that cluster may be stopped.")] = False,
    ca: CredentialFile = None,
    certificate: CredentialFile = None,
    key: CredentialFile = None,
) -> None:
    """Run every check of the shim contract, one line each. It takes the cluster for itself: what else runs there is stopped."""
    if not yes:
        raise InvalidInput("the suite stops whatever the shim's cluster runs; say --yes when that is what you want", "--yes")
    results = asyncio.run(_verify(address, (ca, certificate, key)))
    items = [{"check": each.name, "ok": each.ok, "message": each.message} for each in results]
    failed = sum(each.ok is False for each in results)
    left_out = sum(each.ok is None for each in results)
    summary = f"{len(results) - failed - left_out} passed, {failed} failed, {left_out} left out"
    output.emit({"items": items, "summary": summary}, settings().output, lambda: print(summary))
    if failed:
        raise typer.Exit(1)


async def _verify(address: str, files: tuple[Path | None, Path | None, Path | None]) -> "list[Result]":
    try:
        from cluster_shim.grpc.client import GrpcShim
    except ImportError as error:
        raise NotFound("speaking to a shim outside this process needs gRPC: pip install 'banyan-edge[shim]'") from error
    from cluster_shim.contract import ShimError
    from cluster_shim.verify import verify as suite

    human = settings().output in ("table", "wide")
    try:
        shim = GrpcShim(address, _credentials(files))
        await shim.describe()  # before the suite, so that a wrong address is one error and not twenty
        try:
            return await suite(shim, _show if human else lambda result: None)
        finally:
            await shim.close()
    except ShimError as error:
        raise Unreachable(str(error)) from error


def _credentials(files: tuple[Path | None, Path | None, Path | None]) -> Any:
    given = [path for path in files if path]
    if not given:
        return None
    if len(given) < len(files):
        raise InvalidInput("over TCP give all three: --ca, --certificate and --key")
    import grpc

    try:
        ca, certificate, key = (path.read_bytes() for path in given)
    except OSError as error:
        raise InvalidInput(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _show(result: "Result") -> None:
    mark = {True: "ok      ", False: "FAILED  ", None: "left out"}[result.ok]
    print(f"{mark}  {result.name}{f': {result.message}' if result.message else ''}", flush=True)
