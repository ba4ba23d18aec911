"""Whatever the servers have shown, one of them gets the last requests, and the quickest does."""

from __future__ import annotations

import asyncio

import pytest

from distill.endpoints.servers.pool import ServerPool
from distill.endpoints.servers.server import Server, ServerSettings
from distill.endpoints.servers.server_fields import ServerFields


def shown(seconds: float) -> Server:
    """Make a server that has answered twelve requests, one after the other, each in so many seconds."""
    clock = [0.0]
    server = Server(
        settings=ServerSettings(url="http://x/v1", model="m"),
        fields=ServerFields("http://x/v1"),
        most=8,
        now=lambda: clock[0],
    )
    for _ in range(12):
        clock[0] += seconds
        server.answered(10, seconds)
    return server


@pytest.mark.parametrize("seconds", [(1.0, 1.0), (1.0, 1.01, 1.02), (5.0, 1.0), (0.001, 0.001), (3.0, 3.0, 0.1)])
@pytest.mark.parametrize("left", [1, 2, 1000])
def test_the_last_requests_are_handed_out_at_once(seconds: tuple[float, ...], left: int) -> None:
    async def acquired() -> Server | None:
        pool = ServerPool([shown(each) for each in seconds], lambda: left)
        return await asyncio.wait_for(pool.acquire(), 5.0)

    server = asyncio.run(acquired())
    assert server is not None
    if left == 1:
        assert server.seconds == pytest.approx(min(seconds), rel=0.05)
