"""Plain requests to an application in memory; streams need `tests.serving`."""

from __future__ import annotations

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
