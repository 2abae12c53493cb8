"""The server's application by itself, without sockets: what a request leaves behind, however it ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from numerics.harness import random_model
from serving.packages import module, package

serve = module("serve")

Told = list[dict[str, Any]]


@asynccontextmanager
async def running() -> AsyncIterator[Any]:
    """The application with its engine's thread."""
    engine = package().engine.Engine(random_model(package()), cache_bytes=2**20)
    server = serve.Server(engine, module("text").ByteCodec(), None, frozenset(), None)
    server.loop.start()
    try:
        yield server
    finally:
        server.loop.stop()


def gone_after(events: int, told: Told) -> Callable[[], Awaitable[None]]:
    """Waits until a client was sent so many events, as it does before it hangs up."""

    async def wait() -> None:
        while len(told) < events:
            await asyncio.sleep(0.001)

    return wait


async def requested(server: Any, path: str, body: Any = None, hangs_up_after: int | None = None) -> Told:
    """What a client is told; one that hangs up does so when it was told so much."""
    told: Told = []
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> dict[str, Any]:
        if message := next(messages, None):
            return message
        if hangs_up_after is None:
            await asyncio.Event().wait()
        await gone_after(hangs_up_after or 0, told)()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    method = "GET" if body is None else "POST"
    await server({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    return told


async def nothing_is_left(server: Any, tasks: set[Any]) -> None:
    pool = server.loop.engine.pool
    for _ in range(500):
        if len(pool.free) == len(pool.holders) - 1 and not server.loop.texts and asyncio.all_tasks() == tasks:
            return
        await asyncio.sleep(0.01)
    raise AssertionError((len(pool.free), server.loop.texts, asyncio.all_tasks() - tasks))


LONG = {"prompt": [1, 2, 3], "max_tokens": 40, "n": 3}


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_hangs_up_leaves_no_task_and_no_page(stream: bool, after: int) -> None:
    """Before the answer begins, when it has begun, and in its midst. Whole answers begin when they end."""

    async def scene() -> None:
        async with running() as server:
            tasks = asyncio.all_tasks()
            body = {**LONG, "stream": stream}
            told = await requested(server, "/v1/completions", body, hangs_up_after=after if stream else 0)
            assert not any(b"[DONE]" in message.get("body", b"") for message in told)
            assert bool(told) == stream
            await nothing_is_left(server, tasks)

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_answers_that_end_leave_nothing_either(stream: bool) -> None:
    async def scene() -> None:
        async with running() as server:
            tasks = asyncio.all_tasks()
            first, *_, last = await requested(server, "/v1/completions", {**LONG, "stream": stream})
            assert first["status"] == 200 and not last.get("more_body")
            await nothing_is_left(server, tasks)

    asyncio.run(scene())


def test_a_server_that_drains_refuses_and_says_so() -> None:
    async def scene() -> None:
        async with running() as server:
            assert [message.get("status") for message in await requested(server, "/health")] == [200, None]
            server.draining = lambda: True
            for path, body in (("/health", None), ("/v1/completions", LONG)):
                start, _ = await requested(server, path, body)
                assert start["status"] == 503 and (b"retry-after", b"1") in start["headers"]

    asyncio.run(scene())


def test_too_many_texts_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_TEXTS", 2)

    async def scene() -> None:
        async with running() as server:
            start, body = await requested(server, "/v1/completions", LONG)
            assert start["status"] == 429 and (b"retry-after", b"1") in start["headers"]
            assert json.loads(body["body"])["error"]["message"]

    asyncio.run(scene())


def test_an_engine_that_fails_ends_a_stream_with_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events so far, the error, and an end: OpenAI's client raises what it reads."""

    async def scene() -> None:
        async with running() as server:
            tasks, step, steps = asyncio.all_tasks(), server.loop.engine.step, iter(range(4))

            def failing() -> Any:
                if next(steps) == 3:
                    raise RuntimeError("planted")
                return step()

            monkeypatch.setattr(server.loop.engine, "step", failing)
            told = await requested(server, "/v1/completions", {**LONG, "stream": True})
            *_, error, end = [message["body"] for message in told[1:]]
            assert json.loads(error.removeprefix(b"data: "))["error"] and end == b"data: [DONE]\n\n"
            assert (await requested(server, "/health"))[0]["status"] == 503
            await asyncio.sleep(0.01)
            assert asyncio.all_tasks() == tasks

    asyncio.run(scene())
    assert "planted" in capsys.readouterr().err
