"""How much of bodies the service holds, and how long it waits for them."""

import anyio
import pytest
from fastapi import HTTPException

from marketplace.service.middleware import BodyLimitMiddleware


class Upload:
    """One request whose body is fed by the test, and which the application answers when it is told to."""

    def __init__(self, limits: BodyLimitMiddleware):
        self._limits, self._answered = limits, anyio.Event()
        self._sender, self._receiver = anyio.create_memory_object_stream(100)
        self.read, self.refusal = 0, None

    async def run(self, scope, receive, send) -> None:
        more = True
        while more:
            message = await receive()
            self.read, more = self.read + len(message["body"]), message["more_body"]
        await self._answered.wait()

    async def __call__(self) -> None:
        self._limits.app = self.run
        try:
            await self._limits({"type": "http", "headers": []}, self._receiver.receive, None)
        except HTTPException as error:
            self.refusal = error.status_code

    async def feed(self, size: int, more: bool = True) -> None:
        await self._sender.send({"type": "http.request", "body": bytes(size), "more_body": more})
        await anyio.wait_all_tasks_blocked()

    async def answer(self) -> None:
        self._answered.set()
        await anyio.wait_all_tasks_blocked()


def limited(test, max_total_bytes: int = 100, max_seconds: float = 3600) -> None:
    """Run test(limits, start), where start() begins an upload."""

    async def main() -> None:
        limits = BodyLimitMiddleware(None, 60, max_total_bytes, max_seconds)
        async with anyio.create_task_group() as tasks:

            async def start(whole: int = 0) -> Upload:
                upload = Upload(limits)
                if whole:
                    await upload.feed(whole, more=False)  # it is there before it is asked for
                tasks.start_soon(upload)
                await anyio.wait_all_tasks_blocked()
                return upload

            await test(limits, start)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_oldest_unfinished_body_gives_way_when_all_hold_too_much():
    async def test(limits, start):
        stalled, slow, whole = [await start() for _ in range(3)]
        await whole.feed(40, more=False)
        await stalled.feed(30)
        await slow.feed(30)
        assert [upload.refusal for upload in (stalled, slow, whole)] == [None] * 3  # exactly as much as may be held
        fresh = await start()
        await fresh.feed(20, more=False)
        assert [upload.refusal for upload in (stalled, slow, whole, fresh)] == [503, None, None, None]
        assert limits.total_bytes == 90
        await slow.feed(30)
        assert [upload.refusal for upload in (slow, whole, fresh)] == [503, None, None]  # itself, where only whole ones are left
        for upload in (whole, fresh):
            await upload.answer()
        assert limits.total_bytes == 0

    limited(test)


def test_bodies_that_wait_for_their_answer_are_never_given_up():
    async def test(limits, start):
        uploads = [await start() for _ in range(4)]
        for upload in uploads:
            await upload.feed(30, more=False)
        assert [upload.refusal for upload in uploads] == [None, None, None, 503]
        await uploads[0].answer()
        again = await start()
        await again.feed(30, more=False)
        assert (again.refusal, again.read, limits.total_bytes) == (None, 30, 90)

    limited(test)


def test_a_body_that_is_given_up_between_two_reads_ends_with_the_next():
    async def test(limits, start):
        first = await start()
        await first.feed(50)
        (body,) = limits._bodies
        body.refuse()
        await first.feed(5)
        assert (first.refusal, limits.total_bytes) == (503, 0)

    limited(test)


@pytest.mark.parametrize("fed", [[], [10]])
def test_a_body_that_is_not_whole_in_time_is_408(fed):
    async def test(limits, start):
        upload = await start()
        for size in fed:
            await upload.feed(size)
        with anyio.fail_after(60):
            while upload.refusal is None:
                await anyio.lowlevel.checkpoint()
        assert (upload.refusal, limits.total_bytes) == (408, 0)

    limited(test, max_seconds=0.05)


def test_time_stops_counting_when_the_body_is_whole():
    async def test(limits, start):
        upload = await start(whole=10)
        late = await start()
        with anyio.fail_after(60):
            while late.refusal is None:
                await anyio.lowlevel.checkpoint()
        assert (late.refusal, upload.refusal) == (408, None)

    limited(test, max_seconds=0.05)


def test_a_body_larger_than_one_may_be_is_413():
    async def test(limits, start):
        upload = await start()
        await upload.feed(61)
        assert (upload.refusal, limits.total_bytes) == (413, 0)

    limited(test)
