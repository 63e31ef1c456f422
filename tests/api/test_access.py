"""Keys over HTTP: who is asked for one, what refusals look like, and what no key may see."""

import contextlib
import json
import logging
from dataclasses import replace

import httpx
import pytest

from server.api.access import AccessRules
from server.core.clock import SystemClock
from server.gateway.agent import Agent
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter
from server.store.connection import FILE, open_database
from server.store.key_text import new_key
from server.store.key_view import KeyView
from server.store.keys import KeyLimits, KeyRepository
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio

OPEN = {"/health", "/health/live", "/health/ready"}
ADMIN = {"/models/load", "/models/unload", "/slots"}
ANY_KEY = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{model}",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/props",
    "/metrics",
    "/openapi.json",
}
OTHER = Agent(("other",), n_ctx=4096, default_max_tokens=64)


class Keyed:
    """A server over a fake engine, with a store of keys."""

    def __init__(self, directory, **rules) -> None:
        self.directory = directory
        self.database = open_database(directory)
        self.keys = KeyRepository(self.database)
        self.view = KeyView(directory)
        clock = SystemClock()
        self.failures = FailureLimiter(clock, at_once=1000)
        self.authenticator = Authenticator(self.view, clock, self.failures)
        self.stack = Stack(
            agents=(OTHER,), gatekeeper=self.authenticator, rules=AccessRules(**rules)
        )

    def close(self) -> None:
        self.view.close()
        self.database.close()
        self.stack.service.shutdown()

    def key(self, name="a", **what) -> str:
        return self.keys.create(name, SystemClock().wall(), **what).secret

    async def ask(self, method, path, key=None, body=None, address="192.0.2.7", **headers):
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        transport = httpx.ASGITransport(self.stack.app, client=(address, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, json=body, headers=headers)

    async def chat(self, key=None, model=MODEL, **fields):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.ask("POST", "/v1/chat/completions", key, body)


@pytest.fixture
def make_keyed(tmp_path):
    with contextlib.ExitStack() as opened:
        yield lambda **rules: opened.enter_context(contextlib.closing(Keyed(tmp_path, **rules)))


@pytest.fixture
def keyed(make_keyed) -> Keyed:
    return make_keyed()


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


async def test_a_key_is_taken_from_either_header(keyed) -> None:
    key = keyed.key()

    assert (await keyed.chat(key)).status_code == 200
    body = {"messages": [{"role": "user", "content": "hi"}]}
    path = "/v1/chat/completions"
    for headers in (
        {"x-api-key": key},
        {"authorization": f"bearer   {key} "},
        {"authorization": f"Bearer {key}", "x-api-key": key},
        {"authorization": "Bearer ", "x-api-key": key},
    ):
        answer = await keyed.ask("POST", path, None, body, **headers)
        assert answer.status_code == 200, headers


async def test_without_a_valid_key_nothing_is_done(keyed) -> None:
    key = keyed.key()
    keyed.key("revoked")
    body = {"messages": [{"role": "user", "content": "hi"}]}
    path = "/v1/chat/completions"

    for headers in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sk-123"},
        {"authorization": f"Bearer {key[:-1]}"},
        {"authorization": f"Bearer {new_key('0123456789')}"},
        {"authorization": f"Basic {key}"},
        {"authorization": f"Bearer {key}", "x-api-key": new_key("0000000000")},
        {"authorization": f"Bearer {key}", "x-api-key": new_key("zzzzzzzzzz")},
        {"authorization": f"Bearer {key}, Bearer {key}"},
        {"x-api-key": f"{key}\t{key}"},
        {"cookie": f"token={key}"},
    ):
        answer = await keyed.ask("POST", path, None, body, **headers)
        assert code(answer) == (401, "invalid_api_key"), headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]
        assert key not in answer.text
    # Nor is a key taken from the address: it would stand in every proxy's log.
    assert (await keyed.ask("POST", f"{path}?token={key}", None, body)).status_code == 401
    assert keyed.stack.engine.requests == []


async def test_every_endpoint_is_open_for_any_key_or_for_administrators(keyed) -> None:
    documented = keyed.stack.app.openapi()["paths"]
    routes = {(path, method) for path, methods in documented.items() for method in methods}
    routes.add(("/openapi.json", "get"))
    assert {path for path, _ in routes} == OPEN | ADMIN | ANY_KEY, "a new one belongs in a set"
    user, admin = keyed.key("user"), keyed.key("admin", admin=True)

    for path, method in sorted(routes):
        real = path.replace("{model}", MODEL)
        told = {who: await keyed.ask(method, real, who, {}) for who in (None, user, admin)}
        statuses = {who: answer.status_code for who, answer in told.items()}
        if path in OPEN:
            assert set(statuses.values()) == {200}, path
            continue
        assert code(told[None]) == (401, "invalid_api_key"), path
        assert statuses[admin] not in (401, 403), path
        if path in ADMIN:
            assert code(told[user]) == (403, "admin_required"), path
        else:
            assert statuses[user] == statuses[admin], path


async def test_unknown_paths_tell_strangers_nothing(keyed) -> None:
    key = keyed.key()
    for path in ("/nothing", "/health/", "//health", "/health/live/../../slots", "/HEALTH"):
        assert code(await keyed.ask("GET", path))[0] == 401, path
    assert code(await keyed.ask("GET", "/nothing", key)) == (404, "not_found")


async def test_metrics_can_be_open(make_keyed) -> None:
    keyed = make_keyed(open_paths=OPEN | {"/metrics"})
    keyed.key()

    assert (await keyed.ask("GET", "/metrics")).status_code == 200
    assert (await keyed.ask("GET", "/slots")).status_code == 401


async def test_without_keys_all_may_ask_and_this_machine_may_change_things(keyed) -> None:
    assert (await keyed.chat()).status_code == 200
    assert (await keyed.chat("sk-whatever")).status_code == 200
    load = {"model": MODEL}
    denied = await keyed.ask("POST", "/models/load", None, load)
    assert code(denied) == (403, "admin_required")
    here = await keyed.ask("POST", "/models/load", None, load, address="127.0.0.1")
    assert here.status_code == 200


async def test_revoking_counts_from_the_next_request_on(keyed) -> None:
    key = keyed.key()
    assert (await keyed.chat(key)).status_code == 200
    keyed.keys.revoke(["a"], 0)
    answer = await keyed.chat(key)
    assert code(answer) == (401, "invalid_api_key")
    assert "revoked" in answer.json()["error"]["message"]


async def test_refusals_are_counted_by_code(keyed) -> None:
    key = keyed.key()
    for _ in range(3):
        await keyed.chat("wrong")

    metrics = (await keyed.ask("GET", "/metrics", key)).text
    assert 'onegpu_errors_total{code="invalid_api_key"} 3.0' in metrics


async def test_refused_keys_are_counted_by_reason(keyed) -> None:
    key, expired = keyed.key(), keyed.key("expired", expires=1)
    keyed.key("revoked")
    for presented in (None, "wrong", new_key("0123456789"), new_key("0123456789"), expired):
        await keyed.chat(presented)

    metrics = (await keyed.ask("GET", "/metrics", key)).text
    for reason, count in {"missing": 1, "malformed": 1, "unknown": 2, "expired": 1}.items():
        assert f'onegpu_key_refusals_total{{reason="{reason}"}} {count}.0' in metrics


async def test_too_many_failures_are_told_when_to_come_back_and_not_to_retry(make_keyed) -> None:
    keyed = make_keyed()
    keyed.failures._most_ahead = 0.0
    key = keyed.key()
    assert (await keyed.chat("wrong")).status_code == 401

    answer = await keyed.chat("wrong")

    assert code(answer) == (429, "too_many_failures")
    assert 1 <= int(answer.headers["retry-after"]) <= 6
    assert answer.headers["x-should-retry"] == "false"
    assert (await keyed.chat(key)).status_code == 200


async def test_a_key_sees_and_uses_its_models_only(keyed) -> None:
    key = keyed.key(limits=KeyLimits(models=("other",)))

    listed = (await keyed.ask("GET", "/v1/models", key)).json()["data"]
    assert [card["id"] for card in listed] == ["other"]
    assert (await keyed.chat(key, "other")).status_code == 200
    for answer in (
        await keyed.chat(key, MODEL),
        await keyed.chat(key, "alias"),
        await keyed.ask("GET", f"/v1/models/{MODEL}", key),
        await keyed.ask("GET", f"/props?model={MODEL}", key),
        await keyed.ask("POST", "/tokenize", key, {"model": MODEL, "content": "x"}),
        await keyed.ask("POST", "/detokenize", key, {"model": MODEL, "tokens": [1]}),
        await keyed.ask(
            "POST", "/apply-template", key, {"messages": [{"role": "user", "content": "hi"}]}
        ),
    ):
        assert code(answer) == (403, "model_not_allowed")
        assert answer.json()["error"]["param"] == "model"
    unknown = await keyed.chat(key, "fake-mode")
    assert code(unknown) == (404, "model_not_found")
    assert MODEL not in unknown.json()["error"]["message"]
    assert "other" in (await keyed.chat(key, "othr")).json()["error"]["message"]


async def test_a_key_may_use_a_model_under_any_of_its_names(keyed) -> None:
    key = keyed.key(limits=KeyLimits(models=("alias",)))

    for model in (MODEL, "alias"):
        assert (await keyed.chat(key, model)).status_code == 200


async def test_a_keys_context_and_output_limits_hold(keyed) -> None:
    key = keyed.key(limits=KeyLimits(max_context=100, max_tokens=10))

    assert (await keyed.chat(key, max_tokens=10)).status_code == 200
    assert (await keyed.chat(key)).status_code == 200
    assert [request.max_tokens for request in keyed.stack.engine.requests] == [10, 10]
    answer = await keyed.chat(key, max_tokens=11)
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["error"]["param"] == "max_tokens"
    long = [{"role": "user", "content": "x" * 100}]
    assert code(await keyed.chat(key, messages=long)) == (400, "context_length_exceeded")


async def test_keys_do_not_share_cached_prefixes(keyed) -> None:
    first, second = keyed.key("first"), keyed.key("second")
    for key in (first, second, first):
        await keyed.chat(key)

    scopes = [request.cache_scope for request in keyed.stack.engine.requests]
    assert scopes[0] == scopes[2] != scopes[1]
    assert "" not in scopes


async def test_keys_share_cached_prefixes_where_the_server_says_so(make_keyed) -> None:
    keyed = make_keyed()
    keyed.stack.service.limits = replace(keyed.stack.service.limits, share_prefixes=True)
    for key in (keyed.key("first"), keyed.key("second")):
        await keyed.chat(key)

    assert {request.cache_scope for request in keyed.stack.engine.requests} == {""}


async def test_a_store_that_cannot_be_read_is_503_for_those_it_does_not_know(keyed) -> None:
    used, unused = keyed.key("used"), keyed.key("unused")
    await keyed.chat(used)
    for path in keyed.directory.iterdir():
        path.unlink()
    (keyed.directory / FILE).write_bytes(b"garbage")

    assert (await keyed.chat(used)).status_code == 200
    answer = await keyed.chat(unused)
    assert code(answer) == (503, "store_unavailable")
    assert answer.headers["retry-after"] == "10"
    assert str(keyed.directory) not in answer.text
    assert (await keyed.ask("GET", "/health/live")).status_code == 200


async def test_web_pages_from_elsewhere_cannot_use_a_server_without_keys(make_keyed) -> None:
    keyed = make_keyed(origins=("https://listed.example",))
    load = {"model": MODEL}

    async def asked(origin: str, host: str) -> httpx.Response:
        headers = {"origin": origin, "host": host}
        return await keyed.ask("POST", "/models/load", None, load, "127.0.0.1", **headers)

    for origin, host in (
        ("http://evil.example", "127.0.0.1:8000"),
        ("https://evil.example", "evil.example"),  # its name was made to mean this address
        ("null", "127.0.0.1:8000"),
        ("file://", "127.0.0.1:8000"),
        ("http://10.0.0.8", "10.0.0.9:8000"),
        ("http://[", "["),
        ("", ""),
        ("http://localhost.evil.example", "localhost:8000"),
        ("https://listed.example.evil", "localhost:8000"),
    ):
        assert code(await asked(origin, host)) == (403, "origin_not_allowed"), origin
    for origin, host in (
        ("http://localhost:3000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://10.0.0.9:8000", "10.0.0.9:8000"),
        ("https://listed.example", "127.0.0.1:8000"),
    ):
        assert (await asked(origin, host)).status_code == 200, origin
    # With a key it is the key that counts.
    admin = keyed.key(admin=True)
    answer = await keyed.ask("POST", "/models/load", admin, load, origin="http://evil.example")
    assert answer.status_code == 200


async def test_a_server_without_keys_answers_to_its_own_names_only(make_keyed) -> None:
    """A page may give its own name the address of this machine; its GETs tell no origin then."""
    keyed = make_keyed(hosts=("listed.example",))

    async def asked(host: str, here: str = "127.0.0.1", path="/v1/models") -> httpx.Response:
        base = f"http://[{here}]" if ":" in here else f"http://{here}"
        transport = httpx.ASGITransport(keyed.stack.app, client=(here, 4711))
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.get(path, headers={"host": host})

    for here in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        for host in (
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:80@localhost",
            "notlisted.example",
            "[",
        ):
            answer = await asked(host, here)
            assert code(answer) == (403, "host_not_allowed"), host
            assert "server.host_names" in answer.json()["error"]["message"]
        for host in (
            "localhost:8000",
            "LOCALHOST",
            "localhost.",
            "app.localhost:3000",
            "127.0.0.1:8000",
            "127.8.8.8",
            "[::1]:8000",
            "0.0.0.0:8000",
            "listed.example:8000",
            "Listed.Example",
        ):
            assert (await asked(host, here)).status_code == 200, host
    assert (await asked("evil.example", path="/health/live")).status_code == 200
    # Others reach this machine by names that it need not know.
    assert (await asked("gpu-box:8000", "192.0.2.7")).status_code == 200
    # With a key it is the key that counts.
    keyed.key()
    assert code(await asked("evil.example")) == (401, "invalid_api_key")


async def test_a_page_of_the_servers_own_listed_name_may_ask(make_keyed) -> None:
    keyed = make_keyed(hosts=("box.example",))
    own = {"origin": "http://box.example:8000", "host": "box.example:8000"}
    for other in ({}, {"origin": "http://other.example"}, {"host": "localhost"}):
        answer = await keyed.ask("GET", "/v1/models", None, None, "127.0.0.1", **(own | other))
        assert answer.status_code == (403 if other else 200), other


async def test_browsers_of_other_origins_get_no_leave_by_default(keyed) -> None:
    key = keyed.key()
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}

    asked = await keyed.ask("OPTIONS", "/v1/chat/completions", None, None, **preflight)
    answer = await keyed.ask("GET", "/v1/models", key, origin="https://app.example")

    assert asked.status_code == 401
    for got in (asked, answer):
        assert not [name for name in got.headers if name.startswith("access-control")]


async def test_listed_origins_get_leave_for_errors_too(make_keyed) -> None:
    keyed = make_keyed(origins=("https://app.example",))
    key = keyed.key()
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }

    asked = await keyed.ask("OPTIONS", "/v1/chat/completions", None, None, **preflight)
    assert asked.status_code == 200
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    for presented, status in ((key, 200), (None, 401)):
        answer = await keyed.ask("GET", "/v1/models", presented, origin="https://app.example")
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
    other = await keyed.ask("GET", "/v1/models", key, origin="https://other.example")
    assert "access-control-allow-origin" not in other.headers


async def test_secrets_are_in_no_log_metric_or_answer(keyed, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    good, forged = keyed.key("good"), new_key("0123456789")
    answers = [
        await keyed.chat(good),
        await keyed.chat(forged),
        await keyed.chat(good[:-1]),
        await keyed.chat(good, "missing"),
        await keyed.ask("GET", f"/{good}", good),
        await keyed.ask("GET", f"/v1/models?token={good}", forged),
        await keyed.chat(good, max_tokens=-1),
    ]
    metrics = await keyed.ask("GET", "/metrics", good)

    told = [answer.text + json.dumps(dict(answer.headers)) for answer in answers if answer]
    logs = "\n".join(str(vars(record)) for record in caplog.records if record.name != "httpx")
    paths = [answer for answer in answers if good in str(answer.request.url.path)]
    for secret in (good, forged, good[:-1]):
        part = secret.split("_")[2][:30]
        assert part not in metrics.text
        for answer, text in zip(answers, told, strict=False):
            assert answer in paths or part not in text
    assert forged.split("_")[2][:30] not in logs
    # The access log names the key that asked by its public part.
    assert keyed.keys.all()[0].id in logs
