"""Offer a `contract.Shim` to a controller in another process."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from banyan.shim.v1 import shim_pb2 as pb
from banyan.shim.v1.shim_pb2_grpc import ShimServiceServicer, add_ShimServiceServicer_to_server

from cluster_shim.contract import ByteStream, Desired, OpenTarget, Shim, ShimError
from cluster_shim.grpc.client import CHUNK, OPTIONS
from cluster_shim.grpc.convert import from_message, to_message

Context = grpc.aio.ServicerContext[Any, Any]
SUPERSEDED = "another controller has taken over this cluster"


class ShimServer:
    """Serves ``shim`` at ``address``: ``unix:/path`` (0600), or ``host:port`` with ``credentials`` that demand a client certificate."""

    def __init__(self, shim: Shim, address: str, credentials: grpc.ServerCredentials | None = None) -> None:
        if credentials is None and not address.startswith("unix:"):
            raise ShimError(f"shim {address}: over TCP certificates are needed; use unix:/path otherwise")
        self._address = address
        self._server = grpc.aio.server(options=OPTIONS)
        self.service = Service(shim)
        add_ShimServiceServicer_to_server(self.service, self._server)
        if credentials is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        await self._server.start()
        if self._address.startswith("unix:"):
            os.chmod(self._address.removeprefix("unix:"), 0o600)  # noqa: PTH101 - not worth a thread

    async def close(self, grace_seconds: float = 1.0) -> None:
        await self._server.stop(grace_seconds)


class Service(ShimServiceServicer):
    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._superseded: asyncio.Event | None = None  # of the reconciliation that runs
        self._turn = asyncio.Lock()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802 - the service's name
        try:
            return pb.DescribeResponse(description=to_message(await self._shim.describe(), pb.Description))
        except ShimError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def Reconcile(  # noqa: N802 - the service's name
        self, request_iterator: AsyncIterator[pb.ReconcileRequest], context: Context
    ) -> AsyncIterator[pb.ReconcileResponse]:
        """The controller that came last is the one that lives: a dead one's connection may linger for long."""
        if self._superseded is not None:
            self._superseded.set()
        mine = self._superseded = asyncio.Event()
        async with self._turn:
            try:
                async with aclosing(_until(mine, self._observe(request_iterator))) as news:
                    async for response in news:
                        yield response
            except ShimError as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if mine.is_set():
            await context.abort(grpc.StatusCode.ABORTED, SUPERSEDED)

    async def _observe(self, requests: AsyncIterator[pb.ReconcileRequest]) -> AsyncGenerator[pb.ReconcileResponse, None]:
        async def desired() -> AsyncIterator[Desired]:
            async for request in requests:
                yield from_message(request.desired, Desired)

        async for observed in self._shim.reconcile(desired()):
            yield pb.ReconcileResponse(observed=to_message(observed, pb.Observed))

    async def Open(self, request_iterator: AsyncIterator[pb.OpenRequest], context: Context) -> AsyncIterator[pb.OpenResponse]:  # noqa: N802 - the service's name
        requests = aiter(request_iterator)
        first = await anext(requests, pb.OpenRequest())
        try:
            stream = await self._shim.open(from_message(first.target, OpenTarget))
        except ShimError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        sending = asyncio.create_task(_send(requests, stream), name="shim/grpc/open")
        try:
            yield pb.OpenResponse(opened=pb.Opened())
            while data := await stream.read(CHUNK):
                yield pb.OpenResponse(data=data)
            yield pb.OpenResponse(data=b"")
            await sending
        except ShimError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        finally:
            sending.cancel()
            stream.abort("the controller's call ended")


async def _send(requests: AsyncIterator[pb.OpenRequest], stream: ByteStream) -> None:
    async for request in requests:
        await stream.write(request.data)
    await stream.close_write()


async def _until(stop: asyncio.Event, items: AsyncGenerator[pb.ReconcileResponse, None]) -> AsyncGenerator[pb.ReconcileResponse, None]:
    """``items`` until they end or ``stop`` is set."""
    stopping = asyncio.create_task(stop.wait(), name="shim/grpc/superseded")
    following: asyncio.Task[pb.ReconcileResponse] | None = None
    try:
        while not stop.is_set():
            following = asyncio.ensure_future(anext(items))
            await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                yield following.result()
            except StopAsyncIteration:
                return
    finally:
        stopping.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait({following})
        await items.aclose()
