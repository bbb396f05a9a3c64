"""Offer a `contract.Shim` to a controller in another process."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from banyan.shim.v1 import shim_pb2 as pb
from banyan.shim.v1.shim_pb2_grpc import ShimServiceServicer, add_ShimServiceServicer_to_server

from cluster_controller.tasks import to_its_end
from cluster_shim.contract import ByteStream, Desired, Observed, OpenTarget, Shim, ShimError
from cluster_shim.grpc.client import CHUNK, OPTIONS
from cluster_shim.grpc.convert import from_message, to_message

Context = grpc.aio.ServicerContext[Any, Any]
END_SECONDS = 10.0  # in which a reconciliation ends by itself that another has taken over
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
        """The controller that came last is the one that lives: a dead one's connection may linger for long.

        The one before ends by itself, for nothing more is desired, and only then the next one begins. It is not cancelled: that could
        strike while it is ending, and leave its work half undone.
        """
        if self._superseded is not None:
            self._superseded.set()
        mine = self._superseded = asyncio.Event()
        async with self._turn:
            over = asyncio.Event()
            stopping = asyncio.create_task(mine.wait(), name="shim/grpc/superseded")
            news = self._shim.reconcile(_desired(request_iterator, over))
            following: asyncio.Future[Observed] | None = None
            try:
                while not mine.is_set():
                    following = asyncio.ensure_future(anext(news))
                    await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
                    if following.done():
                        yield pb.ReconcileResponse(observed=to_message(following.result(), pb.Observed))
            except StopAsyncIteration:
                return
            except ShimError as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            finally:
                stopping.cancel()
                over.set()
                await to_its_end(_wind_up(news, following))
        await context.abort(grpc.StatusCode.ABORTED, SUPERSEDED)

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


async def _desired(requests: AsyncIterator[pb.ReconcileRequest], over: asyncio.Event) -> AsyncGenerator[Desired, None]:
    """Ends when the call does, or ``over`` is set."""
    ending = asyncio.create_task(over.wait(), name="shim/grpc/over")
    following: asyncio.Future[pb.ReconcileRequest] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(requests))
            await asyncio.wait({ending, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done() or following.cancelled():  # gRPC raises CancelledError in who reads a call that has ended
                return
            try:
                request = following.result()
            except StopAsyncIteration:
                return
            yield from_message(request.desired, Desired)
    finally:
        ending.cancel()
        if following is not None:
            following.cancel()


async def _wind_up(news: AsyncIterator[Observed], following: "asyncio.Future[Observed] | None") -> None:
    """Let the shim end its reconciliation by itself, as nothing more is desired; one that does not is not waited for without end."""
    deadline = asyncio.get_running_loop().time() + END_SECONDS
    while following is not None:
        await asyncio.wait({following}, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not following.done():
            following.cancel()
            await asyncio.wait({following})
        if following.cancelled() or following.exception() is not None:
            break
        following = asyncio.ensure_future(anext(news))
    if isinstance(news, AsyncGenerator):
        await news.aclose()
