"""The server as a process: OpenAI's own client drives it, and what else comes over a socket breaks nothing."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.harness import Compile, random_model
from numerics.specs import MTP, spec_text
from openai import APIError, APIStatusError, AsyncOpenAI, BadRequestError, OpenAI

CONTEXT = 512
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEY = "secret"


class Served:
    """A server process and what talks to it."""

    def __init__(self, folder: Path, package: str, checkpoint: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-m", f"{package}.infer.serve", "--checkpoint", str(checkpoint), "--key", KEY]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], cwd=folder)
        self.base = f"http://127.0.0.1:{self.port}"
        self.wait()

    def wait(self) -> None:
        for _ in range(600):
            try:
                assert self.get("/health") == "ok\n"
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server does not start")

    def get(self, path: str) -> str:
        text: str = urllib.request.urlopen(self.base + path, timeout=30).read().decode()
        return text

    def metric(self, name: str) -> int:
        return next(
            int(line.split()[1])
            for line in self.get("/metrics").splitlines()
            if f"_{name} " in line and "#" not in line
        )

    def post(self, data: bytes, path: str = "/v1/completions") -> tuple[int, Any]:
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(self.base + path, data=data, headers=headers)
        try:
            return 200, json.loads(urllib.request.urlopen(request, timeout=120).read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.base}/v1", api_key=KEY, max_retries=0, timeout=300)

    def open_files(self) -> int:
        """Sockets of clients among them."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def settled(self) -> None:
        """Nothing runs any more, and every page is free."""
        for _ in range(100):
            if self.metric("texts_running") + self.metric("texts_waiting") == 0:
                break
            time.sleep(0.1)
        assert self.metric("texts_running") + self.metric("texts_waiting") == 0


def start(compiled: Compile, folder: Path, template: str = TEMPLATE, **changes: Any) -> Served:
    package = compiled(spec_text(vocab_size=300, max_position_embeddings=CONTEXT, mtp=MTP, **changes))
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "bos_token": "^"}))
    return Served(package.folder.parent, package.folder.name, folder)


@pytest.fixture(scope="module")
def served(compiled: Compile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start(compiled, tmp_path_factory.mktemp("checkpoint"))
    yield served
    served.process.terminate()
    assert served.process.wait(30) == 0


@pytest.fixture(autouse=True)
def _no_page_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    if "served" not in request.fixturenames:
        yield
        return
    served = request.getfixturevalue("served")
    served.settled()
    before = served.metric("pages_free")
    yield
    served.settled()
    assert served.metric("pages_free") == before


OPTIONS: dict[str, Any] = {"model": "small", "max_tokens": 12, "temperature": 0.8, "seed": 5}


def test_models(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == ["small"]


def test_a_stream_is_the_whole_answer(served: Served) -> None:
    client = served.client()
    whole = client.completions.create(prompt="def f(", **OPTIONS)
    stream = list(
        client.completions.create(prompt="def f(", stream=True, stream_options={"include_usage": True}, **OPTIONS)
    )
    *pieces, last = stream
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    reasons = [piece.choices[0].finish_reason for piece in pieces]
    assert reasons[-1] == whole.choices[0].finish_reason == "length" and not any(reasons[:-1])
    assert last.choices == [] and last.usage == whole.usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 12)


def test_chat(served: Served) -> None:
    client = served.client()
    messages: Any = [{"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    options = {**OPTIONS, "max_completion_tokens": 9}
    whole = client.chat.completions.create(messages=messages, **options)
    assert whole.usage.prompt_tokens == len("^<system>Be\n<user>Hi\n<assistant>"), (
        "one bos_token, and the template's words"
    )
    assert whole.usage.completion_tokens == 9 and whole.choices[0].message.role == "assistant"
    pieces = list(client.chat.completions.create(messages=messages, stream=True, **options))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content


def test_several_texts_and_prompts(served: Served) -> None:
    both = served.client().completions.create(prompt=["ab", [3, 4]], n=2, **OPTIONS)
    assert [one.index for one in both.choices] == [0, 1, 2, 3]
    lone = served.client().completions.create(prompt="ab", **OPTIONS)
    assert both.choices[0].text == lone.choices[0].text, "the first has the seed itself"
    assert both.choices[1].text != both.choices[0].text


def test_stop_strings(served: Served) -> None:
    client = served.client()
    text = client.completions.create(prompt="def f(", **OPTIONS).choices[0].text
    stop = text[3:5]
    stopped = client.completions.create(prompt="def f(", stop=[stop], **OPTIONS).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def test_logprobs(served: Served) -> None:
    options = {**OPTIONS, "max_tokens": 4}
    found = served.client().completions.create(prompt="ab", logprobs=3, **options).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == 4 and all(value < 0 for value in found.token_logprobs)
    messages: Any = [{"role": "user", "content": "x"}]
    chat = served.client().chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **options)
    assert [len(one.top_logprobs) for one in chat.choices[0].logprobs.content] == [3, 3, 3, 3] or all(
        len(one.top_logprobs) in (2, 3) for one in chat.choices[0].logprobs.content
    )


BAD = [
    b"{",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"prompt": 5}',
    b'{"prompt": ""}',
    b'{"prompt": [999]}',
    b'{"prompt": [true]}',
    b'{"prompt": "x", "max_tokens": 0}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": true}',
    b'{"prompt": "x", "n": 1000}',
    b'{"prompt": "x", "stop": 4}',
    b'{"prompt": "x", "logit_bias": {"a": 1}}',
    b'{"logit_bias": {"1": 1' + b"0" * 400 + b'}, "prompt": "x"}',
    b'{"prompt": "x", "top_p": 0}',
    b'{"prompt": "x", "logprobs": 99}',
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: body[:40].decode(errors="replace"))
def test_a_bad_body_is_told_why(served: Served, body: bytes) -> None:
    status, answer = served.post(body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]


@pytest.mark.parametrize(("length", "status"), [(1, 200), (CONTEXT - 1, 200), (CONTEXT, 400), (CONTEXT + 1, 400)])
def test_prompts_up_to_the_context(served: Served, length: int, status: int) -> None:
    try:
        made = served.client().completions.create(model="small", prompt="x" * length, max_tokens=1)
        assert status == 200 and made.usage.prompt_tokens == length
    except BadRequestError as error:
        assert status == 400 and error.code == "context_length_exceeded"


def test_a_wrong_key(served: Served) -> None:
    with pytest.raises(APIStatusError) as raised:
        OpenAI(base_url=f"{served.base}/v1", api_key="wrong", max_retries=0).models.list()
    assert raised.value.status_code == 401


def test_an_unknown_path_and_method(served: Served) -> None:
    assert served.post(b"{}", "/v1/nothing")[0] == 404 and served.post(b"{}", "/health")[0] == 405


def test_a_body_of_100_mb_is_refused_to_whoever_sends_it(served: Served) -> None:
    status, answer = served.post(b'{"prompt": "' + b"x" * (100 << 20) + b'"}')
    assert status == 413 and "more than" in answer["error"]["message"]


def head(length: int) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "host: x", f"authorization: Bearer {KEY}", f"content-length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.mark.parametrize("stream", ["true", "false"])
def test_clients_that_vanish_leave_nothing(served: Served, stream: str) -> None:
    body = b'{"prompt": "abc", "max_tokens": 500, "stream": ' + stream.encode() + b"}"
    before = served.open_files()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(head(len(body)) + body)
            time.sleep(0.02)
    served.settled()
    for _ in range(100):
        if served.open_files() <= before:
            return
        time.sleep(0.1)
    raise AssertionError("a socket is left open")


def test_half_a_body_and_a_half_closed_socket(served: Served) -> None:
    """Whoever says that nothing more will come gets no half answer: all of it, or none."""
    body = b'{"prompt": "abc", "max_tokens": 3}'
    for sent in (b"", head(len(body)), head(len(body)) + body[:7], head(len(body)) + body):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda open=connection: open.recv(1 << 16), b""))
        assert not answer or json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 3
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head(len(body)) + body)
        assert b"200" in connection.recv(100)


@pytest.mark.slow
def test_a_trickling_body_is_cut_off_and_holds_up_nobody(served: Served) -> None:
    """The time limit is for the whole body: a byte now and then does not extend it."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(head(1000))
        connection.settimeout(0.5)
        answer = b""
        while not answer:
            connection.sendall(b" ")
            assert served.post(b'{"prompt": "abc", "max_tokens": 1}')[0] == 200
            try:
                answer = connection.recv(1 << 16)
            except TimeoutError:
                assert time.monotonic() - began < 60
    assert b" 408 " in answer.splitlines()[0] and b"connection: close" in answer


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_streams_are_each_the_lone_answer(served: Served, number: int) -> None:
    lone = served.client().completions.create(prompt="def f(", **OPTIONS).choices[0].text

    async def one(client: AsyncOpenAI) -> str:
        text = ""
        async for piece in await client.completions.create(prompt="def f(", stream=True, **OPTIONS):
            text += piece.choices[0].text
        return text

    async def all_of_them(number: int) -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.base}/v1", api_key=KEY, max_retries=0, timeout=600) as client:
            return await asyncio.gather(*(one(client) for _ in range(number)))

    assert asyncio.run(all_of_them(number)) == [lone] * number


def test_reasoning_is_answered_apart(compiled: Compile, tmp_path: Path) -> None:
    """Answers of random weights are full of bytes that are no characters: the first one ends the reasoning here."""
    marks = {"begin": "<think>", "end": "\ufffd"}
    served = start(compiled, tmp_path, f"{TEMPLATE}<think>", tokens={"reasoning": marks})
    try:
        client = served.client()
        options = {**OPTIONS, "max_tokens": 40}
        text = client.completions.create(prompt="^<user>Hi\n<assistant><think>", **options).choices[0].text
        thought, mark, said = text.partition("\ufffd")
        assert mark and said, text
        chat: Any = client.chat.completions.create
        messages = [{"role": "user", "content": "Hi"}]
        whole = chat(messages=messages, **options).choices[0].message
        assert (whole.reasoning_content, whole.content) == (thought, said)
        deltas = [piece.choices[0].delta for piece in chat(messages=messages, stream=True, **options)]
        for part in ("reasoning_content", "content"):
            streamed = "".join(getattr(delta, part, None) or "" for delta in deltas)
            assert streamed == getattr(whole, part), part
    finally:
        served.process.terminate()
        served.process.wait(30)


def test_a_server_that_is_stopped_under_load_ends_every_stream(compiled: Compile, tmp_path: Path) -> None:
    """Those that run end whole, or with an error that says so; none is left hanging, and the process leaves with 0."""
    served = start(compiled, tmp_path)
    options = {**OPTIONS, "max_tokens": 60}
    lone = served.client().completions.create(prompt="abc", **options).choices[0].text

    async def one(client: AsyncOpenAI, started: asyncio.Event) -> str:
        text = ""
        async for piece in await client.completions.create(prompt="abc", stream=True, **options):
            started.set()
            text += piece.choices[0].text
        return text

    async def all_of_them() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{served.base}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
            started = asyncio.Event()
            tasks = [asyncio.create_task(one(client, started)) for _ in range(60)]
            await started.wait()
            served.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks, return_exceptions=True)

    ended = asyncio.run(all_of_them())
    assert served.process.wait(60) == 0
    assert all(isinstance(end, APIError) or end == lone for end in ended), ended
    assert any(end == lone for end in ended)


def test_a_stopped_server_finishes_its_streams(compiled: Compile, tmp_path: Path) -> None:
    served = start(compiled, tmp_path)
    options = {**OPTIONS, "max_tokens": 150}
    stream = served.client().completions.create(prompt="abc", stream=True, **options)
    pieces = [next(stream).choices[0].text]
    served.process.send_signal(signal.SIGTERM)
    pieces += [piece.choices[0].text for piece in stream]
    assert served.process.wait(60) == 0
    assert len("".join(pieces)) > 50
