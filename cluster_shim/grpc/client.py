"""`contract.Shim` spoken to over gRPC: on a Unix socket, or over mutual TLS on another machine."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from banyan.shim.v1 import shim_pb2 as pb
from banyan.shim.v1.shim_pb2_grpc import ShimServiceStub

from cluster_shim.contract import Description, Desired, Observed, OpenTarget, ShimError
from cluster_shim.grpc.convert import from_message, to_message

if TYPE_CHECKING:
    from banyan.shim.v1.shim_pb2_grpc import ShimServiceAsyncStub

MAX_MESSAGE = 64 << 20
DESCRIBE_SECONDS = 10.0
OPEN_SECONDS = 30.0
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
        broken: list[BaseException] = []

        async def requests() -> AsyncIterator[pb.ReconcileRequest]:
            try:
                async for state in desired:
                    yield pb.ReconcileRequest(desired=to_message(state, pb.Desired))
            except (ShimError, OSError) as error:
                broken.append(error)
                call.cancel()

        call = self._stub.Reconcile(requests())
        try:
            async for response in call:
                yield from_message(response.observed, Observed)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()

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
