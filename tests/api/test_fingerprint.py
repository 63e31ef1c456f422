"""Every request with a body reaches the gateway with the fingerprint of what it says."""

from __future__ import annotations

import httpx
import pytest

from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio
CHAT = ("/v1/chat/completions", b'{"model":"%s","messages":[{"role":"user","content":"a"}]}')
TEXT = ("/v1/completions", b'{"model":"%s","prompt":"a"}')


@pytest.fixture
def opened(monkeypatch):
    """A stack, and the specs that its service was asked to open."""
    stack, specs = Stack(), []
    whole = stack.service.open_on

    async def opening(served, spec):
        specs.append(spec)
        return await whole(served, spec)

    monkeypatch.setattr(stack.service, "open_on", opening)
    yield stack, specs
    stack.service.shutdown()


async def send(stack, path, content, **headers):
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(path, content=content, headers=headers)
    assert answer.status_code == 200


async def test_equal_requests_and_no_others_have_equal_fingerprints(opened):
    stack, specs = opened
    chat, text = CHAT[1] % MODEL.encode(), TEXT[1] % MODEL.encode()
    both = b'{"prompt":"a","messages":[{"role":"user","content":"a"}]}'
    sent = [
        (CHAT[0], chat),
        (CHAT[0], chat),
        (CHAT[0], chat + b" "),
        (TEXT[0], text),
        (CHAT[0], both),
        (TEXT[0], both),
    ]
    for number, (path, content) in enumerate(sent):
        await send(stack, path, content, **{"x-request-id": f"r{number}"})
    prints = [spec.fingerprint for spec in specs]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5
    assert {len(one) for one in prints} == {16}
