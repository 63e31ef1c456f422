"""Where no remote may be."""

from __future__ import annotations

import pytest

from server.gateway.remote.address import (
    ForbiddenAddress,
    check_url,
    is_forbidden,
    watch_connection,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "169.254.170.2",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "224.0.0.1",
    ],
)
def test_addresses_that_hand_out_credentials_are_forbidden(address):
    assert is_forbidden(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValueError, match="credentials"):
        check_url(f"http://{host}/v1")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.1", "172.16.0.1", "fd12::1", "8.8.8.8"]
)
def test_neighbours_and_others_are_not(address):
    assert not is_forbidden(address)
    host = f"[{address}]" if ":" in address else address
    check_url(f"https://{host}:8443/v1")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://metadata.google.internal/v1", "credentials"),
        ("http://METADATA.google.internal./v1", "credentials"),
        ("http://instance-data/latest", "credentials"),
        ("ftp://example.com", "must be an address such as"),
        ("example.com/v1", "must be an address such as"),
        ("http://", "must be an address such as"),
        ("http://h:99999/", "must be an address such as"),
        ("http://ex\u00e4mple..com/v1", "must be ASCII without spaces"),
        ("http://h/v1\n", "must be ASCII without spaces"),
        ("http://exa mple/v1", "must be ASCII without spaces"),
        ("http://[::1/", "must be an address such as"),
        ("https://user:secret@example.com/v1", "must not have a user or password"),
        ("https://example.com/v1?key=1", "without"),
        ("https://example.com/v1#x", "without"),
    ],
)
def test_urls_that_cannot_be_a_remotes(url, told):
    with pytest.raises(ValueError, match=told) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


class Stream:
    def __init__(self, address) -> None:
        self.address = address
        self.closed = False

    def get_extra_info(self, name):
        assert name == "server_addr"
        return self.address

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("address", "bad"),
    [(("169.254.169.254", 80), True), (("127.0.0.1", 80), False), (None, True)],
)
async def test_a_connection_is_looked_at_once_it_is_there(address, bad):
    stream = Stream(address)
    await watch_connection("connection.connect_tcp.started", {})
    if bad:
        with pytest.raises(ForbiddenAddress):
            await watch_connection("connection.connect_tcp.complete", {"return_value": stream})
    else:
        await watch_connection("connection.connect_tcp.complete", {"return_value": stream})
    assert stream.closed == bad
