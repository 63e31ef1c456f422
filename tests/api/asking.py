"""Plain requests to an application in memory, and requests under way to a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from tests.serving import Stack


async def post(stack: Stack, path: str, body: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json=body, headers=headers)


async def get(stack: Stack, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


@contextlib.asynccontextmanager
async def under_way(
    stack: Stack,
    body: Any,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request to a server: gives a task whose result is the open answer; its connection is cut."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=20, trust_env=False) as client:
        request = client.build_request("POST", path, json=body, headers=headers)
        task = asyncio.create_task(client.send(request, stream=True))
        try:
            yield task
        finally:
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().aclose()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                await task
