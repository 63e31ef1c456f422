"""Who gets in: with which key, from where, when, and what the others are told."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import AdminRequired, InvalidApiKey, ModelNotAllowed, TooManyFailures
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter, is_loopback, network_of
from server.gateway.principal import Principal
from server.store.connection import FILE, open_database
from server.store.key_text import new_key
from server.store.key_view import KeyView
from server.store.keys import KeyLimits, KeyRepository
from server.store.refusals import StoreError
from tests.fakes import FakeClock

HERE, THERE = "127.0.0.1", "192.0.2.7"


class TwoClocks(FakeClock):
    """A wall clock that can be set without the steady one."""

    jumped = 0.0

    def wall(self) -> float:
        return super().wall() + self.jumped


class Door:
    """An authenticator over a real store, and a clock that the test sets."""

    def __init__(self, directory, **limits) -> None:
        self.directory = directory
        self.database = open_database(directory)
        self.keys = KeyRepository(self.database)
        self.clock = TwoClocks()
        self.failures = FailureLimiter(self.clock, **limits)
        self.view = KeyView(directory)
        self.auth = Authenticator(self.view, self.clock, self.failures)

    @property
    def now(self) -> float:
        return self.clock.wall()

    def close(self) -> None:
        self.view.close()
        self.database.close()

    def create(self, name="a", **what):
        return self.keys.create(name, self.now, **what)

    def enter(self, presented, address=THERE) -> Principal:
        return self.auth.authenticate(presented, address)

    def refused(self, presented, address=THERE) -> str:
        with pytest.raises(InvalidApiKey) as refusal:
            self.enter(presented, address)
        assert refusal.value.code == "invalid_api_key"
        return refusal.value.message


@pytest.fixture
def make_door(tmp_path):
    with contextlib.ExitStack() as opened:
        yield lambda **limits: opened.enter_context(contextlib.closing(Door(tmp_path, **limits)))


@pytest.fixture
def door(make_door):
    return make_door(at_once=1000)


def test_a_key_lets_in_with_what_it_grants(door) -> None:
    limits = KeyLimits(rpm=12, models=("m",))
    new = door.create(limits=limits, admin=True)

    principal = door.enter(new.secret)

    assert principal == Principal(new.key.id, "a", limits, admin=True)
    assert not principal.anonymous


def test_without_any_key_everybody_is_let_in_and_this_machine_may_change_things(door) -> None:
    for presented in (None, "", "sk-no-key-needed", new_key("0123456789")):
        assert door.enter(presented) == Principal()
        assert door.enter(presented).anonymous
        for address in (HERE, "127.8.8.8", "::1", "::ffff:127.0.0.1"):
            assert door.enter(presented, address).admin
        for address in (THERE, "10.0.0.1", "::", "2001:db8::1", "localhost", "", "testclient"):
            assert not door.enter(presented, address).admin
    assert not door.auth.required()


def test_the_first_key_closes_the_door_without_a_restart(door) -> None:
    door.enter(None)
    new = door.create()

    assert "An API key is required" in door.refused(None)
    assert "An API key is required" in door.refused(None, HERE)
    assert door.enter(new.secret).key_id == new.key.id


def test_the_door_stays_closed_when_all_keys_are_revoked_or_the_file_goes(door) -> None:
    new = door.create()
    door.enter(new.secret)
    door.keys.revoke(["a"], door.now)
    assert "is revoked" in door.refused(new.secret)
    assert "required" in door.refused(None, HERE)

    door.database.close()
    for path in door.directory.iterdir():
        path.unlink()
    assert "required" in door.refused(None, HERE)
    open_database(door.directory).close()
    assert "required" in door.refused(None, HERE)
    assert "not valid" in door.refused(new.secret)


def test_what_has_not_the_form_is_refused_without_a_look_into_the_store(door) -> None:
    new = door.create()
    door.enter(new.secret)

    class NoStore:
        def find(self, key_id):
            raise AssertionError(key_id)

        def empty(self):
            return False

    door.auth._keys = NoStore()
    secret = new.secret
    flipped = secret[:30] + ("a" if secret[30] != "a" else "b") + secret[31:]
    injected = secret[:30] + "\r\nX-Admin: 1" + secret[30:]
    for text in ("", "sk-123", secret[:-1], secret + " ", flipped, injected, "ключ", "\ud800"):
        message = door.refused(text)
        assert "not an API key of this server" in message
        assert len(text) < 5 or text not in message
    assert door.auth.counters == {"malformed": 8}


def test_forged_keys_are_told_nothing_that_helps(door) -> None:
    known = door.create("known")
    expired = door.create("expired", expires=door.now + 60)
    revoked = door.create("revoked")
    door.keys.revoke(["revoked"], door.now)
    door.clock.advance(61)

    answers = {
        door.refused(new_key(key_id))
        for key_id in ("0123456789", known.key.id, expired.key.id, revoked.key.id)
    }

    assert len(answers) == 1
    assert door.auth.counters == {"unknown": 4}
    # Who has the secret is told why it does not count.
    assert "expired" in door.refused(expired.secret)
    assert "revoked" in door.refused(revoked.secret)


def test_a_key_ends_at_its_time_and_no_clock_brings_it_back(door) -> None:
    new = door.create(expires=door.now + 3600)
    door.clock.advance(3599)
    door.enter(new.secret)
    door.clock.advance(1)
    assert "expired" in door.refused(new.secret)

    door.clock.jumped = -86400.0
    assert "expired" in door.refused(new.secret)


def test_a_clock_that_jumps_ahead_ends_keys_only_while_it_is_wrong(door) -> None:
    new = door.create(expires=door.now + 3600)
    door.clock.jumped = 1e9
    assert "expired" in door.refused(new.secret)
    door.clock.jumped = 0.0
    assert door.enter(new.secret).key_id


def test_rotation_and_overlap_take_effect_at_once(door) -> None:
    first = door.create()
    door.enter(first.secret)
    second = door.keys.rotate("a", door.now, overlap=60)
    assert door.enter(first.secret) == door.enter(second.secret)
    door.clock.advance(60)
    assert "not valid" in door.refused(first.secret)
    assert door.enter(second.secret).key_id


def test_failures_of_one_address_are_limited_and_told_when_to_come_back(make_door) -> None:
    door = make_door(at_once=3, per_minute=6)
    good = door.create().secret
    for _ in range(3):
        door.refused("wrong")

    for presented in ("wrong", None, new_key("0123456789")):
        with pytest.raises(TooManyFailures) as refusal:
            door.enter(presented)
        assert refusal.value.code == "too_many_failures"
        assert refusal.value.retry_after == 10
        assert good not in refusal.value.message
    # Behind the same address may be others, whose keys are right; and elsewhere nobody failed.
    assert door.enter(good).key_id
    door.refused("wrong", "192.0.2.8")
    door.clock.advance(4)
    with pytest.raises(TooManyFailures) as refusal:
        door.enter("wrong")
    assert refusal.value.retry_after == pytest.approx(6)

    door.clock.advance(refusal.value.retry_after)
    door.refused("wrong")
    with pytest.raises(TooManyFailures):
        door.enter("wrong")
    door.clock.advance(3600)
    for _ in range(3):
        door.refused("wrong")


def test_the_limit_of_failures_does_not_trust_the_wall_clock(make_door) -> None:
    door = make_door(at_once=1, per_minute=6)
    door.create()
    door.refused("wrong")
    for jump in (-1e9, 1e9):
        door.clock.jumped = jump
        with pytest.raises(TooManyFailures):
            door.enter("wrong")


def test_addresses_of_one_host_are_one_and_others_are_told_apart() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") == "2001:db8::"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7")
    assert network_of("fe80::1%eth0") == network_of("fe80::2%eth0")
    assert len(network_of("x" * 1000)) == 64
    assert not is_loopback("")


def test_memory_of_failures_is_bounded_and_emptied() -> None:
    clock = FakeClock()
    limiter = FailureLimiter(clock, at_once=2, per_minute=60, addresses=100)

    for number in range(1000):
        assert limiter.wait(f"10.0.{number // 256}.{number % 256}") == 0
        assert len(limiter) <= 100
    clock.advance(2)
    limiter.wait("10.9.9.9")

    assert len(limiter) == 1


@given(
    steps=st.lists(st.tuples(st.floats(0, 30), st.sampled_from("abc")), max_size=200),
    at_once=st.integers(1, 5),
    per_minute=st.integers(1, 100),
)
def test_no_address_has_more_failures_than_it_may(steps, at_once, per_minute) -> None:
    clock = FakeClock(0.0)
    limiter = FailureLimiter(clock, at_once=at_once, per_minute=per_minute)
    counted: dict[str, list[float]] = {}

    for pause, address in steps:
        clock.advance(pause)
        if (wait := limiter.wait(address)) == 0:
            counted.setdefault(address, []).append(clock.now)
        else:
            assert 0 < wait <= 60 / per_minute + 1e-6

    for times in counted.values():
        for start, begin in enumerate(times):
            for end in range(start, len(times)):
                most = at_once + (times[end] - begin) * per_minute / 60
                assert end - start + 1 <= most + 1e-6


def test_a_store_that_cannot_be_read_is_no_wrong_key(door) -> None:
    used, unused = door.create("used"), door.create("unused")
    door.enter(used.secret)
    door.database.close()
    for path in door.directory.iterdir():
        path.unlink()
    (door.directory / FILE).write_bytes(b"garbage" * 1000)

    assert door.enter(used.secret).key_id
    with pytest.raises(StoreError):
        door.enter(unused.secret)
    assert "required" in door.refused(None)
    assert "not an API key" in door.refused("wrong")
    # A server that has seen no key yet cannot know that there is none.
    fresh = Authenticator(door.view, door.clock, door.failures)
    with pytest.raises(StoreError):
        fresh.authenticate(None, HERE)


def test_models_and_administration_are_for_those_who_may() -> None:
    some = Principal("k", "a", KeyLimits(models=("m", "n")))
    some.require_model(("m", "alias"), "alias")
    with pytest.raises(ModelNotAllowed) as refusal:
        some.require_model(("x",), "x")
    assert (refusal.value.code, refusal.value.param) == ("model_not_allowed", "model")
    assert "'m', 'n'" in refusal.value.message
    Principal("k").require_model(("x",), "x")
    assert not Principal("k", "a", KeyLimits(models=())).may_use(("x",))

    Principal("k", admin=True).require_admin()
    for principal in (some, Principal()):
        with pytest.raises(AdminRequired) as denied:
            principal.require_admin()
        assert denied.value.code == "admin_required"
        assert "--admin" in denied.value.message
