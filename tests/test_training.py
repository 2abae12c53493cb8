"""The emitted trainer, mostly through its command line as a user starts it, on a CPU."""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

ENV = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads are many times slower on a busy machine
VOCAB_SIZE = 512
SMALL = ("--batch-size", "4", "--sequence-length", "32")
PARTS = {"main", "mtp", "balance"}
KEYS = {"step", "loss", *PARTS, "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds", "max_vio"}


def small_spec() -> ModelSpec:
    """The zoo's tiny, every feature of it kept, at a size whose steps take milliseconds."""
    data = load("tiny").model_dump()
    data |= {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "layers": [{"repeat": 1, "ffn": k} for k in ("dense", "moe")]}
    data["attention"] |= {"num_attention_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32}
    data["ffn"]["dense"]["intermediate_size"] = 128
    data["ffn"]["moe"] |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return ModelSpec.model_validate(data)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of another name than its spec: the folder is the user's to rename."""
    folder = tmp_path_factory.mktemp("runs") / "renamed"
    write(emit(build(small_spec())), folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "b").mkdir()
    for name in ("a.py", "b/c.py", "b/d.txt"):
        (folder / name).write_text("def add(x, y):\n    return x + y  # caf\u00e9\n" * 200, encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG\xff\x00")
    return folder


class Trainer:
    """Starts the trainer of a package."""

    def __init__(self, package: Path, train: Any) -> None:
        self.package, self.train = package, train

    def run(self, *args: object, fails: bool = False, prelude: str = "") -> str:
        """stderr of a process of its own; the prelude runs before the trainer in that process."""
        module = f"{self.package.name}.train.train"
        patched = ["-c", f"{prelude}\nimport runpy; runpy.run_module({module!r}, run_name='__main__')"]
        command = [sys.executable, *(patched if prelude else ["-m", module]), *map(str, args)]
        done = subprocess.run(command, cwd=self.package.parent, env=ENV, capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == fails, done.stderr
        assert "Traceback" not in done.stderr and not done.stdout, done.stderr
        return done.stderr

    def here(self, *args: object) -> str:
        """stderr of a run in this process, which saves the seconds that a new one takes to import torch."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self._start(*args)
        return said.getvalue()

    def refuse(self, *args: object) -> str:
        """What a run says that ends with an error: to argparse's stderr, or as the reason of its exit."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
            self._start(*args)
        return f"{stop.value} {said.getvalue()}"

    def _start(self, *args: object) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *map(str, args)])
            try:
                self.train.train(self.train.parse_arguments())
            finally:
                torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def trainer(package: Path, package_at: Any) -> Trainer:
    return Trainer(package, package_at(package)("train.train"))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in records(path)]


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """Weights, biases of the routers and moments of the optimizer, to the bit."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any(tensor.abs().sum() > 0 for name, tensor in a.items() if "correction_bias" in name)
    a, b = (saved_state(folder) for folder in (one, two))
    assert a.keys() == b.keys() and any(name.startswith("exp_avg_sq.") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a if isinstance(a[name], torch.Tensor))


def saved_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, read without the trainer."""
    dcp_to_torch_save(folder, folder / "state.pt")
    state: dict[str, Any] = torch.load(folder / "state.pt")
    return state


def test_learns_and_reports(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "new" / "m.jsonl"
    said = trainer.run("--data", text, "--steps", 30, "--metrics", metrics, "--eval-every", 10, *SMALL)
    lines = records(metrics)
    assert [line["step"] for line in lines] == list(range(1, 31))
    for line in lines:
        assert set(line) == (KEYS | {"eval_loss"} if line["step"] % 10 == 0 else KEYS)
        assert line["tokens"] == line["step"] * 4 * 32 and all(map(math.isfinite, line.values()))
        assert sum(line[part] for part in PARTS) == pytest.approx(line["loss"], rel=1e-5)
    assert abs(lines[0]["main"] - math.log(VOCAB_SIZE)) < 0.1, "fresh weights should give every token the same chance"
    assert lines[-1]["main"] < lines[0]["main"] - 1
    assert lines[-1]["eval_loss"] < lines[9]["eval_loss"]
    assert "3 documents, 1 files that are not UTF-8 left out" in said and "step 30/30" in said


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_resume_is_exact(trainer: Trainer, text: Path, tmp_path: Path, dtype: str) -> None:
    """20 steps in one process, and 10 + 10 in two with what a killed run leaves between them."""
    common = ("--data", text, *SMALL, "--dtype", dtype)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    trainer.run(*common, "--steps", 20, "--metrics", whole, "--checkpoint", tmp_path / "whole", "--eval-every", 7)
    trainer.run(*common, "--steps", 10, "--metrics", parts, "--checkpoint", tmp_path / "parts", "--save-every", 5)
    with parts.open("a") as file:
        file.write('{"step": 11, "loss": 0.0}\n{"step": 12, "lo')
    trainer.run(*common, "--steps", 20, "--metrics", parts, "--checkpoint", tmp_path / "parts", "--resume")
    assert losses(whole) == losses(parts) and [r["step"] for r in records(parts)] == list(range(1, 21))
    assert (tmp_path / "parts/latest").read_text() == "step_000020\n"
    folders = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert folders == ["latest", "step_000010", "step_000020"]
    assert_same_checkpoint(tmp_path / "whole/step_000020", tmp_path / "parts/step_000020")


@pytest.mark.slow
def test_a_compiled_model_trains_as_others(
    trainer: Trainer, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by torch.compile and differentiated ahead of time; --resume compiles without being told."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = ((tmp_path / f"{name}.jsonl", tmp_path / name) for name in ("plain", "compiled"))
    arguments = ("--data", text, "--save-every", 2, *SMALL)
    said = trainer.here(*arguments, "--metrics", plain[0], "--checkpoint", plain[1], "--steps", 4)
    assert not graphs and "compiled" not in said
    said = trainer.here(*arguments, "--metrics", compiled[0], "--checkpoint", compiled[1], "--steps", 2, "--compile")
    assert graphs
    assert "the model is compiled" in said
    said = trainer.here(*arguments, "--metrics", compiled[0], "--checkpoint", compiled[1], "--steps", 4, "--resume")
    assert "the model is compiled" in said
    assert losses(compiled[0]) == pytest.approx(losses(plain[0]), rel=1e-6)


def test_resumes_in_the_package_for_a_gpu(trainer: Trainer, text: Path, tmp_path: Path, package_at: Any) -> None:
    """A run begun without kernels goes on with them (their references, on a CPU), moments included, and back again."""
    spec = small_spec().model_copy(update={"cluster": Machines(kind="h100", nodes=1)})
    write(emit(build(spec)), tmp_path / "kernels")
    fused = Trainer(tmp_path / "kernels", package_at(tmp_path / "kernels")("train.train"))
    common = ("--data", text, *SMALL, "--dtype", "float32", "--checkpoint", tmp_path / "run", "--keep", 3)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    trainer.here("--data", text, *SMALL, "--dtype", "float32", "--metrics", whole, "--steps", 9)
    trainer.here(*common, "--metrics", parts, "--steps", 3)
    fused.here(*common, "--metrics", parts, "--steps", 6, "--resume")
    trainer.here(*common, "--metrics", parts, "--steps", 9, "--resume")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    for step in (3, 6, 9):
        assert int(saved_state(tmp_path / f"run/step_{step:06}")["step"]) == step


@pytest.mark.slow
def test_killed_run_resumes_into_its_decay(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    common = ("--data", text, *SMALL, "--steps", 12, "--decay-steps", 6, "--warmup-steps", 3, "--learning-rate", 1e-2)
    trainer.run(*common, "--metrics", tmp_path / "a.jsonl")
    # Gone right after it has named its first checkpoint in `latest`.
    kill = "import os; move = os.replace\n"
    kill += "os.replace = lambda a, b: (move(a, b), b.name == 'latest' and os._exit(0))"
    args = (*common, "--metrics", tmp_path / "b.jsonl", "--checkpoint", tmp_path / "c", "--save-every", 8)
    trainer.run(*args, prelude=kill)
    assert (tmp_path / "c/latest").read_text() == "step_000008\n"
    trainer.run(*args, "--resume")
    assert losses(tmp_path / "a.jsonl") == losses(tmp_path / "b.jsonl")
    rates = [record["learning_rate"] for record in records(tmp_path / "a.jsonl")]
    assert rates[:6] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])
    assert rates[-1] == pytest.approx(1e-3) and rates[6:] == sorted(rates[6:], reverse=True)


def test_resume_takes_the_flags_of_the_run(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    """Those that the command line leaves out; one that it gives holds, unless step k would see another batch."""
    recipe = (
        *SMALL,
        "--learning-rate",
        3e-3,
        "--weight-decay",
        0,
        "--warmup-steps",
        3,
        "--micro-batch",
        2,
        "--seed",
        5,
    )
    common = ("--data", text, "--checkpoint", tmp_path / "run")
    trainer.here("--data", text, *recipe, "--steps", 4, "--metrics", tmp_path / "whole.jsonl")
    trainer.here(*common, *recipe, "--steps", 2, "--metrics", tmp_path / "parts.jsonl")
    trainer.here(*common, "--steps", 4, "--metrics", tmp_path / "parts.jsonl", "--resume")
    assert losses(tmp_path / "parts.jsonl") == losses(tmp_path / "whole.jsonl")
    trainer.here(*common, "--steps", 5, "--metrics", tmp_path / "parts.jsonl", "--resume", "--learning-rate", 1e-4)
    assert records(tmp_path / "parts.jsonl")[-1]["learning_rate"] == 1e-4
    again = (*common, "--steps", 6, "--metrics", tmp_path / "parts.jsonl", "--resume")
    assert "trained with batch_size 4, not 8" in trainer.refuse(*again, "--batch-size", 8)
    other = text.parent / "other"
    shutil.copytree(text, other, dirs_exist_ok=True)
    changed = (other / "a.py").read_text(encoding="utf-8").replace("x + y", "x - y", 1)
    (other / "a.py").write_text(changed, encoding="utf-8")  # one token among thousands, and as many as before
    assert "trained with data " in trainer.refuse(*again, "--data", other)


def test_weights_that_are_not_finite_do_not_become_the_newest(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    """A rate that ruins the weights in the last step, whose loss was fine."""
    run = tmp_path / "run"
    common = ("--data", text, *SMALL, "--metrics", tmp_path / "m.jsonl", "--checkpoint", run, "--warmup-steps", 0)
    trainer.here(*common, "--steps", 1, "--learning-rate", 1e-3)
    rate = ("--learning-rate", 1e30, "--weight-decay", 1e30, "--steps", 2)
    assert "is not finite" in trainer.refuse(*common, *rate, "--resume")
    assert (run / "latest").read_text() == "step_000001\n" and not (run / "step_000002").exists()


def test_token_files(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    """A folder of text, and the same ids as .npy and as .bin, train to the same losses."""
    files = sorted(path for path in text.rglob("*") if path.is_file() and path.suffix != ".png")
    ids = np.concatenate([np.append(np.frombuffer(file.read_bytes(), np.uint8), np.uint16(256)) for file in files])
    np.save(tmp_path / "t.npy", ids.astype(np.uint32))
    ids.astype(np.uint16).tofile(tmp_path / "t.bin")
    for data in (text, tmp_path / "t.npy", tmp_path / "t.bin"):
        trainer.here("--data", data, "--steps", 3, "--metrics", tmp_path / f"{data.name}.jsonl", *SMALL)
    assert losses(tmp_path / "t.npy.jsonl") == losses(tmp_path / "t.bin.jsonl")
    assert losses(tmp_path / "t.npy.jsonl") == losses(tmp_path / f"{text.name}.jsonl")


def test_tokenizer(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    """A tokenizer.json trained here; published ones are read by the same library."""
    sample = (text / "a.py").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([sample], bpe)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    common = ("--data", text, "--tokenizer", tmp_path / "tokenizer.json", "--steps", 5, *SMALL)
    said = trainer.here(*common, "--metrics", tmp_path / "m.jsonl")
    expected = 3 * (len(tokenizer.encode(sample).ids) + 1)  # the end of each document is a token
    assert f"{expected:,} tokens in 3 documents" in said
    without = "import sys; sys.modules['tokenizers'] = None"
    said = trainer.run(*common, "--metrics", tmp_path / "n.jsonl", fails=True, prelude=without)
    assert "pip install tokenizers" in said
    tokenizer.add_tokens([f"new{i}" for i in range(300)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert f"the model has {VOCAB_SIZE}" in trainer.refuse(*common, "--metrics", tmp_path / "n.jsonl")


def test_user_errors(trainer: Trainer, text: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "m.jsonl"
    common = ("--steps", 2, "--metrics", metrics, *SMALL)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "bytes.dat").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    np.save(tmp_path / "big.npy", np.full(4000, VOCAB_SIZE, np.uint16))
    np.save(tmp_path / "float.npy", np.zeros((2, 40)))
    trainer.here("--data", text, *common, "--checkpoint", tmp_path / "used")
    cases: list[tuple[list[object], str]] = [
        (["--data", tmp_path / "none"], "no such file or folder"),
        (["--data", tmp_path / "short.txt"], "cannot fill one sequence of 32 tokens"),
        (["--data", tmp_path / "odd.bin"], "not a readable token file"),
        (["--data", tmp_path / "bytes.dat"], "no UTF-8 text"),
        (["--data", tmp_path / "big.npy"], f"ids {VOCAB_SIZE} to {VOCAB_SIZE}, but the model knows 0 to"),
        (["--data", tmp_path / "float.npy"], "2-D float64"),
        (["--data", text, "--resume"], "--resume needs --checkpoint"),
        (["--data", text, "--resume", "--checkpoint", tmp_path / "empty"], "latest is missing"),
        (["--data", text, "--checkpoint", tmp_path / "used"], "already holds a run"),
        (["--data", text, "--resume", "--checkpoint", tmp_path / "used", "--seed", 1], "trained with seed 0, not 1"),
        (["--data", text, "--metrics", tmp_path / "notes.jsonl"], "holds something other than metrics"),
        (["--data", text, "--tokenizer", tmp_path / "none.json"], "--tokenizer"),
        (["--data", text, "--device", "abacus"], "--device: abacus: "),
        (["--data", text, "--learning-rate", 1e30, "--steps", 20, "--warmup-steps", 0], "lower --learning-rate"),
        (["--data", text, "--steps", 0], "must be at least 1"),
        (["--data", text, "--seed", -1], "must not be negative"),
        (["--data", text, "--metrics", tmp_path], "something other than metrics"),
    ]
    for args, message in cases:
        said = trainer.refuse(*common, *args)
        assert message in said, (args, said)
    assert (tmp_path / "notes.jsonl").read_text() == "my notes\n"
    said = trainer.run("--data", tmp_path / "none", *common, fails=True)  # run() also sees that there is no traceback
    assert "no such file or folder" in said
    again = trainer.here("--data", text, *common, "--checkpoint", tmp_path / "used", "--resume")
    assert "stands at step 2 already" in again
