"""`banyan shim`: run the contract suite against anybody's shim, and offer one of ours to a controller in another process."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from banyanctl import output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.site import Context, Kubeconfig, Kubernetes, data_folder, own_cluster
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput, NotFound, Unreachable

if TYPE_CHECKING:
    from cluster_shim.contract import Shim
    from cluster_shim.verify import Result

SERVED = ("process", "kubernetes", "k3s")

app = application("Check a shim against the contract, or run one in a process of its own.")

CredentialFile = Annotated[Path | None, typer.Option(help="PEM, for a shim that is spoken to over TCP.", metavar="FILE")]


@app.callback()
def group() -> None:
    """Check a shim against the contract, or run one in a process of its own."""


@app.command(cls=Command)
@examples(
    "banyan shim serve kubernetes --listen unix:/run/banyan/shim.sock --kubeconfig ~/.kube/config",
    "banyan shim serve k3s --listen 0.0.0.0:9443 --ca ca.pem --certificate me.pem --key me.key",
)
def serve(
    kind: Annotated[str, typer.Argument(help="process, kubernetes or k3s.")],
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="unix:/PATH, or HOST:PORT with --ca, --certificate and --key.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    kubernetes: Kubernetes = None,
    ca: CredentialFile = None,
    certificate: CredentialFile = None,
    key: CredentialFile = None,
) -> None:
    """Offer the shim of a cluster to a controller that runs with `--shim ADDRESS`, until it is stopped. Applications run on then."""
    if kind not in SERVED:
        raise InvalidInput(f"no shim {kind!r}; there are {', '.join(SERVED)}", "KIND")
    if not listen.startswith("unix:/") and not (ca and certificate and key):
        raise InvalidInput(f"--listen {listen}: over TCP give --ca, --certificate and --key; or listen on unix:/PATH", "--listen")
    from banyanctl import shims

    given = {key: value for key, value in own_cluster(kind, kubeconfig, context, kubernetes).items() if value is not None}
    shim = shims.of(Config(data=data_folder(), name="shim", **given))
    assert shim is not None
    asyncio.run(_serve(shim, listen, (ca, certificate, key)))


async def _serve(shim: "Shim", address: str, files: tuple[Path | None, Path | None, Path | None]) -> None:
    try:
        import grpc

        from cluster_shim.grpc.server import ShimServer
    except ImportError as error:
        raise NotFound("a shim in a process of its own needs gRPC: pip install 'banyan-edge[shim]'") from error
    from cluster_shim.contract import ShimError

    authority, certificate, key = _read(files)
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True) if authority else None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = ShimServer(shim, address, credentials)
    try:
        await server.start()
        print(f"serving {address}", flush=True)
        try:
            about = await shim.describe()
            print(f"{about.kind} {about.version}: {', '.join(about.component_kinds)}", flush=True)
        except ShimError as error:  # it may come later: whoever asks hears the same
            print(f"not yet: {error}", file=sys.stderr, flush=True)
        await stop.wait()
    finally:
        await server.close()
        close = getattr(shim, "close", None)
        if close is not None:
            await close()


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
    import grpc

    ca, certificate, key = _read(files)
    return grpc.ssl_channel_credentials(ca, key, certificate) if ca else None


def _read(files: tuple[Path | None, Path | None, Path | None]) -> tuple[bytes, bytes, bytes]:
    """CA, certificate and key; three times nothing when none was given."""
    given = [path for path in files if path]
    if not given:
        return b"", b"", b""
    if len(given) < len(files):
        raise InvalidInput("over TCP give all three: --ca, --certificate and --key")
    try:
        ca, certificate, key = (path.read_bytes() for path in given)
    except OSError as error:
        raise InvalidInput(f"{error.filename} cannot be read: {error.strerror}") from error
    return ca, certificate, key


def _show(result: "Result") -> None:
    mark = {True: "ok      ", False: "FAILED  ", None: "left out"}[result.ok]
    print(f"{mark}  {result.name}{f': {result.message}' if result.message else ''}", flush=True)
