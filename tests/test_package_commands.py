"""Command lines of a package: what cannot be is told in a line, never in a traceback; a text ends where texts do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.rl import ReinforcementLearning

END = 256  # what the trainer puts behind a text of bytes


def small_spec(shrink: Any) -> ModelSpec:
    spec: ModelSpec = shrink(load("tiny")).model_copy(update={"vocab_size": 300, "max_position_embeddings": 64})
    return spec


@pytest.fixture(scope="module")
def package(emitted: Any, shrunk: Any) -> Any:
    return emitted(emit(build(small_spec(shrunk))))


@pytest.fixture(scope="module")
def checkpoint(package: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    package("checkpoint").save_hf(package("model").Model(), folder)
    return folder


def started(package: Any, module: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        package(module).main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1", "hi"], "temperature cannot be -1.0"),
        (["--temperature", "nan", "hi"], "temperature cannot be nan"),
        (["--temperature", "inf", "hi"], "temperature cannot be inf"),
        (["--top-p", "2", "hi"], "top_p cannot be 2.0"),
        (["--max-new-tokens", "0", "hi"], "max_new_tokens cannot be 0"),
        (["--seed", str(2**70), "hi"], "seed cannot be"),
        ([""], "a prompt has no tokens"),
        (["--max-new-tokens", "9", "long" * 20], "80 tokens of prompt and 9 new ones"),
        (["--tokenizer", "none.json", "hi"], "none.json: "),
        (["--chat"], "no chat template"),
    ],
)
def test_generate_refuses_in_a_line(package: Any, checkpoint: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as refused:
        started(package, "infer.generate", "--checkpoint", checkpoint, *arguments)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_generate_takes_the_smallest_temperature(package: Any, checkpoint: Path) -> None:
    started(package, "infer.generate", "--checkpoint", checkpoint, "--temperature", 1e-40, "--max-new-tokens", 2, "hi")


@pytest.mark.parametrize("module", ["infer.generate", "infer.serve"])
def test_weights_of_a_checkpoint_can_change_their_layout(
    package: Any, checkpoint: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None shares its memory with others, which would keep it where it is."""
    engines: list[Any] = []
    monkeypatch.setattr(package("infer.generate"), "show", lambda engine, *_: engines.append(engine))
    monkeypatch.setattr("uvicorn.Server.run", lambda server: engines.append(server.config.app.loop.engine))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    prompt = ["hi"] if module == "infer.generate" else []
    started(package, module, "--checkpoint", checkpoint, *prompt)
    (engine,) = engines
    engine.layout._change(False)
    kept = [name for name, weight in engine.layout.model.named_parameters() if weight.untyped_storage().nbytes()]
    assert {name.split(".")[-2] for name in kept} <= KEPT


KEPT = {"embed_tokens", "gate", "kv_b_proj", "norm", "enorm", "hnorm"} | {
    f"{name}_layernorm" for name in ("input", "post_attention", "q_a", "kv_a")
}
"""What no step multiplies by as it is stored, or only in part."""


BROKEN = {
    "nothing": {},
    "no safetensors": {"model.safetensors": "no\n"},
    "no index": {"model.safetensors.index.json": "{"},
    "a run that is gone": {"latest": "step_000001\n"},
    "no JSON": {"generation_config.json": "{"},
}


@pytest.mark.parametrize("module", ["infer.generate", "infer.serve"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_checkpoint_is_named(package: Any, tmp_path: Path, broken: str, module: str) -> None:
    for name, text in BROKEN[broken].items():
        (tmp_path / name).write_text(text)
    prompt = ["hi"] if module == "infer.generate" else []
    with pytest.raises(SystemExit) as refused:
        started(package, module, "--checkpoint", tmp_path, *prompt)
    assert isinstance(refused.value.code, str) and "\n" not in refused.value.code


def test_a_text_ends_where_the_trainer_ends_texts(
    package: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model writes `at.`, the token that ends a text, and would go on."""
    engine, written = package("infer.engine"), [*b"at.", END, *b"at.", END] * 20
    monkeypatch.setattr(engine, "choose", lambda logits, rows: [written[row.end - row.prompt] for row in rows])
    flags = ("--max-new-tokens", 20, "--temperature", 0)
    started(package, "infer.generate", "--checkpoint", checkpoint, *flags, "c")
    assert capsys.readouterr().out.startswith("cat.\n\n")


@pytest.mark.parametrize("length", [0, 1, 65, 10**9])
def test_the_trainer_refuses_lengths_that_the_language_refuses(
    package: Any, length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DSC063 and DSC064: no more than the model has positions, and enough for what is predicted further on."""
    flags = ("--data", tmp_path, "--steps", 1, "--metrics", tmp_path / "m.jsonl", "--sequence-length", length)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["train", *map(str, flags)])
        package("train.train").parse_arguments()
    assert "--sequence-length" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "where"), [("train.train", "file"), ("train.sft", "file/below"), ("train.train", "/proc/nowhere")]
)
def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_step(
    module: str, where: str, shrunk: Any, tmp_path: Path
) -> None:
    spec = small_spec(shrunk).model_copy(update={"rl": ReinforcementLearning(max_new_tokens=8)})
    write(emit(build(spec)), tmp_path / "here")
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "text.txt").write_text("one two three " * 100)
    (tmp_path / "text.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    data = "text.txt" if module == "train.train" else "text.jsonl"
    flags = ("--data", data, "--steps", "1", "--metrics", "m.jsonl", "--checkpoint", where)
    command = [sys.executable, "-m", f"here.{module}", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"error: {where.partition('/below')[0]}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "m.jsonl").exists()
    assert (tmp_path / "file").read_text() == "somebody's"


def test_without_triton_a_package_says_what_to_install(shrunk: Any, tmp_path: Path) -> None:
    spec = small_spec(shrunk).model_copy(update={"cluster": Machines(kind="h100", nodes=1)})
    write(emit(build(spec)), tmp_path / "kernels_here")
    assert "needs torch, triton, safetensors" in (tmp_path / "kernels_here/README.md").read_text()
    code = "import sys; sys.modules['triton'] = None; import kernels_here.model"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode and "need triton" in done.stderr.splitlines()[-1]
    assert "pip install triton" in done.stderr.splitlines()[-1]
    command = "import runpy, sys; sys.modules['triton'] = None; "  # as python -m does
    command += "runpy.run_module('kernels_here.infer.generate', run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "pip install triton" in done.stderr and done.stderr.count("\n") == 1
