"""`contract.Shim` spoken to over gRPC: on a Unix socket, or over mutual TLS on another machine.

A shim that hangs keeps its connection open, and gRPC's own pings prove nothing on a quiet one: a client sends two of them and then none
until there is data, and servers close the connection of who sends more. So while a reconciliation is under way the shim is asked who it
is, again and again: any answer proves that it lives, an error too. One that gives none for long enough is lost, as if it had died.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from banyan.shim.v1 import shim_pb2 as pb
from banyan.shim.v1.shim_pb2_grpc import ShimServiceStub

from cluster_controller.tasks import end_task
from cluster_shim.contract import Description, Desired, Observed, OpenTarget, ShimError
from cluster_shim.grpc.convert import from_message, to_message

if TYPE_CHECKING:
    from banyan.shim.v1.shim_pb2_grpc import ShimServiceAsyncStub

MAX_MESSAGE = 64 << 20
DESCRIBE_SECONDS = 10.0
OPEN_SECONDS = 30.0
ASK_SECONDS = 5.0  # between two questions whether it lives, and for each answer
SILENCES = 3  # in a row, with not a word of the reconciliation either
CHUNK = 64 << 10
OPTIONS = (("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE))
_KEEPALIVE = (("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000))


def credentials(*, ca: bytes, key: bytes, certificate: bytes) -> grpc.ChannelCredentials:
    """For a shim on another machine; PEM. Each side shows a certificate and checks the other's."""
    return grpc.ssl_channel_credentials(ca, key, certificate)


class GrpcShim:
    """``address``: ``unix:/path`` or ``host:port``; without ``credentials`` only a Unix socket is spoken to."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        if credentials is None and not address.startswith("unix:"):
            raise ShimError(f"shim {address}: over TCP a client certificate is needed; use unix:/path otherwise")
        self._address = address
        options = [*OPTIONS, *_KEEPALIVE]
        self._channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        self._stub: ShimServiceAsyncStub = ShimServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def describe(self) -> Description:
        try:
            response = await self._stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        return from_message(response.description, Description)

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncGenerator[Observed, None]:
        """See `contract.Shim`. A shim that goes away ends this with ShimError, never with an empty picture."""
        broken: list[ShimError | OSError] = []  # why this side ended the call

        async def tell() -> None:
            try:
                async for state in desired:
                    await call.write(pb.ReconcileRequest(desired=to_message(state, pb.Desired)))
                await call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the call has ended: what reads it says why
            except (ShimError, OSError) as error:
                broken.append(error)
                call.cancel()

        async def give_up() -> None:
            broken.append(await self._silence(heard))
            call.cancel()

        heard = asyncio.Event()
        call = self._stub.Reconcile()  # type: ignore[call-arg]  # the stubs do not know of calls that are written to
        # Not gRPC's own task that reads an iterator: that one goes on waiting in `desired` when the shim has ended the call, and would
        # take what the next reconciliation is to be told.
        sides = [asyncio.create_task(tell(), name="shim/grpc/telling"), asyncio.create_task(give_up(), name="shim/grpc/asking")]
        try:
            async for response in call:
                heard.set()
                yield from_message(response.observed, Observed)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()
            for side in sides:
                await end_task(side)

    async def _silence(self, heard: asyncio.Event) -> ShimError:
        """Returns once the shim has answered nothing for too long; ``heard`` is set whenever it has said something by itself."""
        silences = 0
        while silences < SILENCES:
            await asyncio.sleep(ASK_SECONDS)
            if heard.is_set():
                heard.clear()
                silences = 0
                continue
            try:
                await self._stub.Describe(pb.DescribeRequest(), timeout=ASK_SECONDS)
            except grpc.aio.AioRpcError as error:
                silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                silences = silences + 1 if silent else 0
            else:
                silences = 0
        return ShimError(f"shim {self._address}: it runs and has not answered for {2 * SILENCES * ASK_SECONDS:g} s; see what holds it up")

    async def open(self, target: OpenTarget) -> "GrpcStream":
        call = self._stub.Open()  # type: ignore[call-arg]  # the stubs do not know of calls that are written to
        stream = GrpcStream(call)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await call.write(pb.OpenRequest(target=to_message(target, pb.OpenTarget)))
                response = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await stream.failure() from None
        except TimeoutError:
            call.cancel()
            raise ShimError(f"shim {self._address}: {target.kind} of {target.uid} was not reached within {OPEN_SECONDS:g} s") from None
        if not isinstance(response, pb.OpenResponse) or response.WhichOneof("message") != "opened":
            raise await stream.failure()
        return stream

    def _error(self, error: grpc.RpcError) -> ShimError:
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        details = (error.details() if isinstance(error, grpc.aio.AioRpcError) else "") or str(error)
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return ShimError(details)
        return ShimError(f"shim {self._address}: {details} ({code.name if code else 'lost'}); see whether it runs")


class GrpcStream:
    """An opened stream as a `contract.ByteStream`."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[pb.OpenRequest, pb.OpenResponse]") -> None:
        self._call = call
        self._buffer = b""
        self._ended = False

    async def failure(self) -> ShimError:
        """Why the call ended."""
        details = await self._call.details()
        return ShimError(details or "the shim ended the stream")

    async def read(self, limit: int = 65536) -> bytes:
        while not self._buffer and not self._ended:
            try:
                response = await self._call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                raise await self.failure() from None
            if not isinstance(response, pb.OpenResponse) or not response.data:
                self._ended = True
            else:
                self._buffer = response.data
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            try:
                await self._call.write(pb.OpenRequest(data=data[start : start + CHUNK]))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                raise await self.failure() from None

    async def close_write(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    def abort(self, reason: str = "") -> None:
        self._ended, self._buffer = True, b""
        self._call.cancel()
