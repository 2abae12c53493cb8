"""The engine's thread: when the engine fails, everybody who waits or comes hears of it."""

import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from numerics.harness import Compile, random_model
from numerics.specs import spec_text


class Fails(Exception):
    pass


@pytest.fixture(scope="module")
def parts(compiled: Compile) -> tuple[ModuleType, Any]:
    package = compiled(spec_text())
    return package.importer("infer.loop"), package.engine.Engine(random_model(package, torch.float32))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_engine_leaves_nobody_waiting(
    parts: tuple[ModuleType, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One text runs when the engine fails, one has just been sent, and one comes afterwards."""
    module, engine = parts
    loop = module.EngineLoop(engine)
    text = __import__(f"{module.__package__}.scheduler", fromlist=["Text"]).Text
    sampling = __import__(f"{module.__package__}.sampling", fromlist=["Sampling"]).Sampling
    heard: dict[str, list[str | None]] = {"first": [], "second": [], "third": []}
    ended = threading.Event()

    def submit(name: str) -> None:
        loop.submit(text([1, 2], sampling(4)), lambda new, why: heard[name].append(why))

    def step() -> list[Any]:
        submit("second")
        raise Fails

    monkeypatch.setattr(engine, "step", step)
    monkeypatch.setattr(loop, "_run", lambda run=loop._run: (run(), ended.set()))
    loop._thread = threading.Thread(target=loop._run)
    submit("first")
    loop.start()
    assert ended.wait(30)
    submit("third")
    assert heard == {"first": ["error"], "second": ["error"], "third": ["error"]}
    assert loop.failed and "Fails" in capsys.readouterr().err
