"""The commands of a package for several ranks, under torchrun: prompts dealt out, a server, and how both end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving.test_ranks import MODELS, write_package

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
BYTES = {**MODELS["deepseek"], "vocab_size": 320}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> Path:
    """A package for two ranks, the same for one process, and a checkpoint."""
    folder = tmp_path_factory.mktemp("commands")
    write_package(BYTES, "alone", folder)
    write_package({**BYTES, "serving": {"ep": 2}}, "shared", folder)
    package = package_at(folder / "alone")
    package("checkpoint").save_hf(package("model").Model(), folder / "weights")
    return folder


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )


HOW = ("--checkpoint", "weights", "--max-new-tokens", "12", "--temperature", "0")


@pytest.mark.slow
def test_prompts_are_dealt_out_and_printed_in_order(folder: Path) -> None:
    prompts = ("def ", "class ", "x", "return ")
    command = (*TORCHRUN, str(free_port()), "-m", "shared.infer.generate", *HOW)
    together = run(*command, *prompts, folder=folder)
    assert together.returncode == 0, together.stderr
    alone = [run(sys.executable, "-m", "alone.infer.generate", *HOW, prompt, folder=folder) for prompt in prompts]
    texts = [found.stdout.rpartition("\n\n")[0] for found in alone]
    *shared, rate = together.stdout.split("\n\n")
    assert shared == texts and rate.startswith(f"{12 * len(prompts)} tokens, ")


@pytest.mark.slow
def test_what_one_rank_cannot_read_ends_both_in_a_line(folder: Path, package_at: Any) -> None:
    """The file has everything but an expert of rank 1."""
    package = package_at(folder / "alone")
    tensors = dict(package("checkpoint").named_tensors(package("model").Model()))
    missing = next(name for name in tensors if ".experts.7." in name)
    del tensors[missing]
    package("storage").replace_folder(folder / "broken", tensors.items(), 2**30, {})
    command = (*TORCHRUN, str(free_port()), "-m", "shared.infer.generate", "--checkpoint", "broken", "x")
    found = run(*command, folder=folder)
    assert found.returncode != 0
    assert f"missing: {missing}" in found.stderr
    assert "error: rank 1 failed: SystemExit" in found.stderr, "rank 0 says why it ends"


@contextmanager
def served(folder: Path, package: str = "shared") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    pytest.importorskip("uvicorn")
    port = free_port()
    command = (*TORCHRUN, str(free_port()), "-m", f"{package}.infer.serve", "--checkpoint", "weights")
    process = subprocess.Popen(
        (*command, "--port", str(port)), cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None or is_healthy(address):
                break
            time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


def is_healthy(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
    except OSError:
        return False


def complete(address: str, prompt: str, **how: Any) -> str:
    body = json.dumps({"prompt": prompt, "max_tokens": 12, "temperature": 0, **how}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.loads(answer.read())["choices"][0]["text"])
    except urllib.error.HTTPError as error:
        return str(error.code)


@pytest.mark.slow
def test_requests_are_answered_by_all_ranks(folder: Path) -> None:
    prompts = [f"def f{index}(" for index in range(8)]
    with served(folder) as (address, process):
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda prompt: complete(address, prompt), prompts))
        apart = [complete(address, prompt) for prompt in prompts]
        metrics = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert together == apart and "" not in together
    values = dict(line.split() for line in metrics.splitlines() if not line.startswith("#"))
    assert values["shared_tokens_total"] == str(12 * 16) and values["shared_texts_running"] == "0"


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_server(folder: Path) -> None:
    """A request that was under way is told so, and rank 0 names the error."""
    write_package(
        {**BYTES, "serving": {"ep": 2}},
        "failing",
        folder,
        lambda path, text: text.replace(
            "        plan = self.scheduler.plan()\n",
            "        plan = self.scheduler.plan()\n        if plan and self.ranks.rank:\n"
            '            raise ValueError("planted")\n',
        ),
    )
    with served(folder, "failing") as (address, process):
        assert complete(address, "on rank 0") not in ("500", "")
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda prompt: complete(address, prompt, max_tokens=90), ("one", "two")))
        _, errors = process.communicate(timeout=60)
    assert answers == ["500", "500"]
    assert "error: rank 1 failed: ValueError: planted" in errors


@pytest.mark.slow
def test_ranks_that_divide_layers_generate_and_serve_and_keep_loads(folder: Path) -> None:
    """The first run counts the tokens of each expert, the second has copies of those that were asked for most."""
    write_package({**BYTES, "serving": {"tp": 2, "ep": 2, "redundant_experts": 2}}, "divided", folder)
    command = (*TORCHRUN, str(free_port()), "-m", "divided.infer.generate", *HOW, "--loads", "loads.json", "def ")
    first, second = (run(*command, folder=folder) for _ in range(2))
    assert first.returncode == 0 == second.returncode, first.stderr + second.stderr
    loads = json.loads((folder / "loads.json").read_text())
    assert [len(layer) for layer in loads] == [8, 8] and len({sum(layer) for layer in loads}) == 1
    alone = run(sys.executable, "-m", "alone.infer.generate", *HOW, "def ", folder=folder)
    texts = {found.stdout.rpartition("\n\n")[0] for found in (first, second, alone)}
    assert len(texts) == 1
    with served(folder, "divided") as (address, process):
        assert f"def {complete(address, 'def ')}" in texts
        process.send_signal(signal.SIGTERM)
        process.wait(60)
