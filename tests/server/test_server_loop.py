"""The loop between an engine's thread and asyncio: order, bounds, failures that cost one ticket, a
clean end. The engine is a fake, so that every moment can be chosen.
"""

import asyncio
import contextlib
import threading
import time

import pytest

from jaxinfer.engine import StepFailed
from jaxinfer.scheduler import QueueFull
from jaxinfer.server.loop import HAND_OVERS, EngineLoop, State, Unavailable
from jaxinfer.server.ticket import Aborted, Cause
from tests.server.fakes import Engine, request


def run(test, **options):
    """Run test(loop, engine) beside a started loop; everything is given back at the end."""
    engine = options.pop("engine", None) or Engine()
    options = {"most_open": 100, **options}

    async def whole():
        loop = EngineLoop(engine, **options)
        loop.start()
        try:
            async with asyncio.timeout(20):
                await loop.wait_ready()
                await test(loop, engine)
        finally:
            engine.gate.set()
            await loop.stop()
        assert not loop.tickets
        assert not loop._thread.is_alive()

    asyncio.run(whole())


async def read(ticket) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    async for events in ticket.batches():
        for index, token in events:
            found.setdefault(index, []).append(token.token_id)
    return found


def test_every_reader_gets_its_own_tokens_in_order():
    async def test(loop, engine):
        tickets = [
            loop.submit([request(f"{i}-{j}", 100 * i + 10 * j, 3 + j) for j in range(2)])
            for i in range(6)
        ]
        found = await asyncio.gather(*map(read, tickets))
        for i, one in enumerate(found):
            assert one == {
                j: list(range(100 * i + 10 * j, 100 * i + 10 * j + 3 + j)) for j in range(2)
            }
        assert loop.open == 0

    run(test)


def test_priority_and_salt_reach_the_engine():
    async def test(loop, engine):
        await read(loop.submit([request("a")], priority=-3, salt="tenant"))
        assert engine.added == [("a", -3, "tenant")]

    run(test)


def test_a_finished_sequence_says_no_more_and_leaves_the_engine():
    async def test(loop, engine):
        ticket = loop.submit([request("long", 0, 10_000), request("short", 0, 3)])
        found = []
        async for events in ticket.batches():
            found += [token.token_id for index, token in events if index == 0]
            if len(found) >= 5:
                ticket.finish(0)
        assert found[:5] == list(range(5))
        while not engine.idle:
            await asyncio.sleep(0.01)

    run(test)


def test_a_ticket_that_is_closed_leaves_the_engine():
    async def test(loop, engine):
        ticket = loop.submit([request(str(i), 0, 10_000) for i in range(3)])
        async for _ in ticket.batches():
            break
        ticket.close()
        with pytest.raises(Aborted) as caught:
            await read(ticket)
        assert caught.value.cause is Cause.CLIENT
        while not engine.idle:
            await asyncio.sleep(0.01)
        assert await read(loop.submit([request("next", 7, 2)])) == {0: [7, 8]}

    run(test)


def test_a_slow_reader_is_dropped_and_nobody_waits_for_it():
    async def test(loop, engine):
        told = asyncio.Event()
        slow = loop.submit([request("slow", 0, 100_000)])
        slow.on_fail = told.set
        quick = await read(loop.submit([request("quick", 5, 200)]))
        assert quick == {0: list(range(5, 205))}
        await told.wait()
        with pytest.raises(Aborted) as caught:
            await read(slow)
        assert caught.value.cause is Cause.SLOW
        while not engine.idle:
            await asyncio.sleep(0.01)

    run(test, buffer=50)


def test_the_engine_waits_for_a_busy_loop():
    async def test(loop, engine):
        ticket = loop.submit([request("a", 0, 1000)])
        async for _ in ticket.batches():
            break
        time.sleep(0.3)  # nothing runs on this thread
        steps = engine.steps
        time.sleep(0.3)
        assert engine.steps <= steps + 1
        assert engine.steps <= 2 * HAND_OVERS + 10
        await read(ticket)

    run(test)


def test_what_an_engine_refuses_costs_one_ticket():
    def refuse(request):
        if request.id == "bad":
            raise ValueError("bad: does not fit")

    async def test(loop, engine):
        good = loop.submit([request("good", 1, 50)])
        bad = loop.submit([request("fine", 1, 5), request("bad", 1, 5)])
        with pytest.raises(ValueError, match="does not fit"):
            await read(bad)
        assert len((await read(good))[0]) == 50
        assert engine.idle

    engine = Engine()
    engine.fail_add = refuse
    run(test, engine=engine)


def test_a_sequence_that_ends_with_an_error_costs_its_ticket():
    async def test(loop, engine):
        good = loop.submit([request("good", 1, 9)])
        bad = loop.submit([request("a", 45, 9), request("b", 100, 10_000)])
        with pytest.raises(Aborted, match="no way on") as caught:
            await read(bad)
        assert caught.value.cause is Cause.SEQUENCE
        assert len((await read(good))[0]) == 9
        await loop.call(lambda engine: None)
        assert engine.idle

    run(test, engine=Engine(error_at=50))


def test_a_failed_step_costs_those_in_it():
    def fail(running):
        lost = [s for s in running if s.request.id == "lost"]
        if lost:
            for sequence in lost:
                engine.abort(sequence)
            raise StepFailed("out of luck", tuple(lost))

    async def test(loop, engine):
        engine.gate.clear()
        good, lost = (loop.submit([request(name, 1, 9)]) for name in ("good", "lost"))
        engine.gate.set()
        with pytest.raises(Aborted, match="out of luck") as caught:
            await read(lost)
        assert caught.value.cause is Cause.ENGINE
        assert len((await read(good))[0]) == 9
        assert loop.healthy

    engine = Engine()
    engine.fail_step = fail
    run(test, engine=engine)


@pytest.mark.parametrize("error", [RuntimeError("device lost"), StepFailed("device lost", ())])
def test_a_dead_engine_ends_everything_and_says_so(error):
    def fail(running):
        if engine.steps == 5:
            engine.failed = error
            raise error

    async def test(loop, engine):
        tickets = [loop.submit([request(str(i), 0, 1000)]) for i in range(5)]
        paused = asyncio.create_task(loop.call(lambda engine: time.sleep(0)))
        for ticket in tickets:
            with pytest.raises(Aborted, match="device lost"):
                await read(ticket)
        assert loop.state is State.DEAD
        assert not loop.healthy
        assert not loop.ready
        with contextlib.suppress(Unavailable):
            await paused
        with pytest.raises(Unavailable, match="dead"):
            loop.submit([request("late")])
        with pytest.raises(Unavailable):
            await loop.pause()

    engine = Engine()
    engine.fail_step = fail
    run(test, engine=engine)


def test_an_engine_that_cannot_warm_up_is_dead():
    def warm_up(engine):
        raise MemoryError("no room")

    async def whole():
        loop = EngineLoop(Engine(), most_open=1, warm_up=warm_up)
        loop.start()
        with pytest.raises(Unavailable, match="no room"):
            await loop.wait_ready()
        assert not loop.healthy
        await loop.stop()

    asyncio.run(whole())


def test_nothing_is_taken_before_it_is_ready():
    allowed = threading.Event()

    async def whole():
        loop = EngineLoop(Engine(), most_open=1, warm_up=lambda engine: allowed.wait(10))
        loop.start()
        with pytest.raises(Unavailable, match="starting"):
            loop.submit([request("a")])
        assert loop.healthy
        assert not loop.ready
        allowed.set()
        await loop.wait_ready()
        assert loop.ready
        await loop.stop()
        assert not loop.healthy

    asyncio.run(whole())


def test_the_queue_is_bounded_and_empties():
    async def test(loop, engine):
        engine.gate.clear()
        tickets = [loop.submit([request(str(i), 0, 2)]) for i in range(6)]
        with pytest.raises(QueueFull):
            loop.submit([request("seventh")])
        with pytest.raises(ValueError, match="at most 6 sequences, got 7"):
            loop.submit([request(f"n{i}") for i in range(7)])
        engine.gate.set()
        await asyncio.gather(*map(read, tickets))
        assert await read(loop.submit([request("seventh", 3, 1)])) == {0: [3]}

    run(test, most_open=6)


def test_a_pause_holds_requests_and_a_resume_lets_them_go():
    async def test(loop, engine):
        await loop.pause()
        ticket = loop.submit([request("a", 1, 3)])
        await asyncio.sleep(0.1)
        assert engine.steps == 0
        assert loop.healthy
        assert not loop.ready
        await loop.resume()
        assert await read(ticket) == {0: [1, 2, 3]}
        assert loop.ready

    run(test)


def test_calls_run_between_steps_and_return_what_they_raise():
    async def test(loop, engine):
        ticket = loop.submit([request("a", 1, 50)])
        assert await loop.call(lambda engine: threading.current_thread().name) == "engine"
        with pytest.raises(ZeroDivisionError):
            await loop.call(lambda engine: 1 / 0)
        assert len((await read(ticket))[0]) == 50

    run(test)


def test_a_step_that_takes_too_long_is_unhealthy_until_it_ends():
    async def test(loop, engine):
        engine.gate.clear()
        ticket = loop.submit([request("a", 1, 2)])
        while loop.healthy:
            await asyncio.sleep(0.02)
        engine.gate.set()
        assert len((await read(ticket))[0]) == 2
        await asyncio.sleep(0.05)
        assert loop.healthy

    run(test, stall_s=0.15)


def test_draining_finishes_what_runs_and_ends_what_does_not():
    async def test(loop, engine):
        short, long = loop.submit([request("s", 0, 20)]), loop.submit([request("l", 0, 10**6)])
        reading = [asyncio.create_task(read(ticket)) for ticket in (short, long)]
        draining = asyncio.create_task(loop.drain(1.0))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="draining"):
            loop.submit([request("late")])
        assert await reading[0] == {0: list(range(20))}
        with pytest.raises(Aborted) as caught:
            await reading[1]
        assert caught.value.cause is Cause.SHUTDOWN
        await draining

    run(test, engine=Engine(step_s=0.005))


def test_an_operator_ends_everything_at_once():
    async def test(loop, engine):
        tickets = [loop.submit([request(str(i), 0, 10**6)]) for i in range(3)]
        assert loop.abort_all(Cause.CONTROL, "enough") == 3
        for ticket in tickets:
            with pytest.raises(Aborted, match="enough"):
                await read(ticket)
        assert await read(loop.submit([request("next", 1, 1)])) == {0: [1]}

    run(test)


def test_nothing_is_left_behind(rng):
    """Random tickets, some abandoned at random moments."""

    async def client(loop, id):
        count = int(rng.integers(1, 40))
        ticket = loop.submit([request(f"{id}-{j}", 0, count) for j in range(rng.integers(1, 4))])
        leaves = rng.random() < 0.4
        with contextlib.suppress(Aborted):
            async for _ in ticket.batches():
                if leaves and rng.random() < 0.2:
                    ticket.close()

    async def test(loop, engine):
        await asyncio.gather(*(client(loop, i) for i in range(30)))
        await loop.call(lambda engine: None)
        assert engine.idle
        assert not loop._owners
        assert not loop._entering
        assert not loop._calls

    run(test)
