"""Answers under idempotency keys: who begins, who joins, what is kept and when it goes."""

from __future__ import annotations

import asyncio

import pytest

from server.core.errors import IdempotencyMismatch
from server.gateway.answers import Answer, AnswerKeeper, AnswerLimits, Passing
from tests.fakes import FakeClock
from tests.gateway.hosting import settle

pytestmark = pytest.mark.anyio


class Writing:
    """Answers that the test writes."""

    def __init__(self, **limits) -> None:
        self.clock = FakeClock()
        self.keeper = AnswerKeeper[str](AnswerLimits(**limits), self.clock)
        self.answers: list[Answer[str]] = []
        self.cancelled = 0
        self._end: list[asyncio.Event] = []

    def join(self, key="k", fingerprint=b"1", scope="me"):
        return self.keeper.join(scope, key, fingerprint, self._work)

    async def _work(self, answer) -> None:
        self.answers.append(answer)
        done = asyncio.Event()
        self._end.append(done)
        try:
            await done.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def begun(self, number=-1):
        await settle()
        return self.answers[number]

    async def complete(self, text=b"all", number=-1, *, worth=True) -> None:
        answer = await self.begun(number)
        answer.open("head")
        answer.write(text)
        answer.worth_keeping = worth
        self._end[number].set()
        await settle()


async def everything(reader):
    parts = []
    while part := await reader.read():
        parts.append(part)
    return b"".join(parts)


async def test_all_readers_get_the_same_from_its_beginning():
    writing = Writing()
    first = writing.join()
    answer = await writing.begun()
    answer.open("head")
    answer.write(b"one ")
    assert await first.read() == b"one "
    second = writing.join()
    answer.write(b"two")
    assert await first.read() == b"two"
    await writing.complete(b"")
    assert await second.head() == "head"
    assert await second.read() == b"one two"
    third = writing.join()
    assert [await everything(one) for one in (first, second, third)] == [b"", b"", b"one two"]
    assert [one.replayed for one in (first, second, third)] == [False, True, True]
    assert await third.whole() == b"one two"
    assert writing.keeper.counters == {"first": 1, "attached": 1, "replayed": 1}
    assert len(writing.answers) == 1


async def test_what_is_true_only_now_is_told_to_those_who_wait():
    writing = Writing()
    first = writing.join()
    answer = await writing.begun()
    answer.write(Passing(b": queued 2/2"))
    assert await first.read() == b": queued 2/2"
    second = writing.join()
    waiting = asyncio.create_task(second.read())
    await settle()
    assert not waiting.done()
    answer.write(Passing(b": queued 1/1"))
    assert await waiting == b": queued 1/1"
    answer.write(Passing(b": processing"))
    answer.write(b"data")
    assert await first.read() == b"data"
    await writing.complete(b"")
    assert await everything(writing.join()) == b"data"


async def test_one_far_behind_is_given_a_part_at_a_time():
    writing = Writing()
    reader = writing.join()
    await writing.complete(b"x" * 100_000)
    assert len(await reader.read()) == 65536
    assert len(await reader.read()) == 100_000 - 65536
    assert await reader.read() == b""


async def test_another_request_under_the_key_is_refused_before_and_after_the_end():
    writing = Writing()
    writing.join()
    with pytest.raises(IdempotencyMismatch):
        writing.join(fingerprint=b"2")
    await writing.complete()
    with pytest.raises(IdempotencyMismatch):
        writing.join(fingerprint=b"2")
    writing.join(fingerprint=b"2", scope="somebody else")
    writing.join(fingerprint=b"2", key="another")
    assert writing.keeper.counters["mismatch"] == 2
    assert writing.keeper.counters["first"] == 3


async def test_an_answer_outlives_its_reader_for_the_grace():
    writing = Writing(grace=30.0)
    reader = writing.join()
    answer = await writing.begun()
    reader.close()
    assert answer.timer is not None
    again = writing.join()
    assert answer.timer is None
    again.close()
    again.close()
    assert answer.readers == 0
    await writing.complete(b"late")
    assert answer.timer is None
    assert await everything(writing.join()) == b"late"


async def test_after_the_grace_it_ends_and_the_next_begins_anew():
    writing = Writing(grace=0.01)
    writing.join().close()
    first = await writing.begun()
    async with asyncio.timeout(5):
        while not first.ended:
            await first.change()
    assert writing.cancelled == 1
    assert len(writing.keeper) == 0
    reader = writing.join()
    assert not reader.replayed
    await writing.complete(b"again")
    assert await everything(reader) == b"again"
    assert writing.keeper.counters["abandoned"] == 1


async def test_a_reader_that_stays_keeps_it_going():
    writing = Writing(grace=0.0)
    one, two = writing.join(), writing.join()
    one.close()
    answer = await writing.begun()
    await settle()
    assert answer.timer is None
    await writing.complete()
    assert await everything(two) == b"all"


async def test_what_was_refused_before_any_work_is_not_kept():
    writing = Writing()
    reader = writing.join()
    await writing.complete(b"no", worth=False)
    assert await everything(reader) == b"no"
    again = writing.join()
    assert not again.replayed
    await writing.complete(b"yes")
    assert await everything(again) == b"yes"


async def test_complete_answers_are_bounded_in_number_bytes_and_time():
    writing = Writing(most=2, size=100, lifetime=60.0)
    for key, text in (("a", b"x" * 40), ("b", b"x" * 40), ("c", b"x" * 40)):
        writing.join(key)
        await writing.complete(text)
    assert (len(writing.keeper), writing.keeper.size) == (2, 80)
    assert not writing.join("a").replayed
    await writing.complete(b"x" * 70)
    assert (len(writing.keeper), writing.keeper.size) == (1, 70)
    assert writing.keeper.counters["dropped"] == 3
    writing.clock.advance(59)
    assert writing.join("a").replayed
    writing.clock.advance(1)
    assert (len(writing.keeper), writing.keeper.size) == (0, 0)
    assert not writing.join("a").replayed


async def test_one_too_large_to_keep_is_still_read_to_its_end():
    writing = Writing(size=10)
    reader = writing.join()
    await writing.complete(b"x" * 11)
    assert (len(writing.keeper), writing.keeper.size) == (0, 0)
    assert await everything(reader) == b"x" * 11


async def test_one_too_large_to_keep_drives_out_no_other():
    writing = Writing(size=10)
    writing.join("small")
    await writing.complete(b"x" * 4)
    writing.join("large")
    await writing.complete(b"x" * 11)
    assert not writing.join("large").replayed
    assert writing.join("small").replayed
    assert (writing.keeper.size, writing.keeper.counters["dropped"]) == (4, 1)


async def test_whoever_reads_a_complete_answer_whole_shares_its_bytes():
    writing = Writing()
    writing.join()
    await writing.complete(b"x" * 1000)
    first, second = writing.join(), writing.join()
    assert await first.whole() is await second.whole()


async def test_a_server_that_ends_waits_for_readers_only():
    writing = Writing(grace=3600.0)
    writing.join("unread").close()
    read = writing.join("read")
    await settle()
    writing.keeper.drain()
    await settle()
    assert writing.cancelled == 1
    assert writing.join("read").replayed
    await writing.complete(number=1)
    assert await everything(read) == b"all"
    late = writing.join("late")
    await settle()
    late.close()
    await settle()
    assert writing.cancelled == 2


async def test_work_that_breaks_leaves_nobody_waiting(caplog):
    keeper = AnswerKeeper[str](AnswerLimits(), FakeClock())

    async def work(answer):
        raise RuntimeError("a bug")

    reader = keeper.join("", "k", b"", work)
    with pytest.raises(RuntimeError, match="before it was opened"):
        await reader.head()
    assert await reader.read() == b""
    assert "a bug" in caplog.text
    assert len(keeper) == 0
