"""Files and flags that are not what they should be: a line says so, and never a traceback."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., str]

QUESTION = '{"prompt": "one and one", "answer": "two"}\n'


@pytest.fixture(scope="module")
def modules(learning: Any) -> Any:
    return learning(group_size=2)


@pytest.fixture(scope="module")
def run(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the trainer, one step long."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("one and one is two. " * 200)
    flags = ("--data", folder / "text.txt", "--batch-size", 2, "--sequence-length", 16, "--steps", 1)
    trainer = modules("train.train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["train", *map(str, flags), "--metrics", f"{folder}/m", "--checkpoint", f"{folder}/c"]
        )
        trainer.train(trainer.parse_arguments())
    return folder / "c"


@pytest.fixture
def refused(modules: Any, capsys: pytest.CaptureFixture[str]) -> Start:
    """The line in which a command ends, by its module and flags."""

    def start(name: str, *flags: object) -> str:
        module = modules(name)
        begin = module.main if hasattr(module, "main") else lambda: module.learn(module.parse_arguments())
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", [name, *map(str, flags)])
            begin()
        code, said = stop.value.code, capsys.readouterr().err
        line = code if isinstance(code, str) else said.splitlines()[-1]
        assert line and "\n" not in line
        return line

    return start


@pytest.fixture
def commands(run: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Flags with which each trainer runs; more of them follow."""
    (tmp_path / "q.jsonl").write_text(QUESTION * 4)
    shutil.copytree(run, tmp_path / "c")
    common = ("--steps", 1, "--metrics", tmp_path / "metrics")
    sft = ("--data", tmp_path / "q.jsonl", "--batch-size", 2, *common)
    grpo = ("--prompts", tmp_path / "q.jsonl", "--reward", "exact_match", "--checkpoint", tmp_path / "c")
    return {"train.sft": sft, "train.grpo": (*grpo, "--questions", 2, "--judges", 1, *common)}


BROKEN_LINES = {
    "no object": "[1]\n",
    "no prompt": '{"answer": "x"}\n',
    "a prompt that is no text": '{"prompt": 3}\n',
    "nothing asked": '{"prompt": ""}\n',
    "messages without a template": '{"prompt": [{"role": "user", "content": "x"}]}\n',
    "no answer": '{"prompt": "x"}\n',
    "no answer is known": '{"prompt": "x", "answer": null}\n',
    "an answer that is no text": '{"prompt": "x", "answer": ["y"]}\n',
    "half a character": '{"prompt": "\\ud800"}\n',
    "half a character in the answer": '{"prompt": "x", "answer": "\\udfff"}\n',
    "brackets without end": "[" * 100_000 + "\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", ["train.sft", "train.grpo"])
@pytest.mark.parametrize("broken", BROKEN_LINES)
def test_questions(name: str, broken: str, refused: Start, commands: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(BROKEN_LINES[broken])
    said = refused(name, *commands[name])
    assert "q.jsonl" in said or "template" in said


def test_texts_of_other_writers(modules: Any, tmp_path: Path) -> None:
    """Empty lines, ends of lines within a text, as JSON allows them, those of Windows, and its mark at the start."""
    text = '\ufeff{"prompt": "a\u2028b\x85", "answer": "\u00e9"}\r\n\n \n{"prompt": "c", "answer": 5}'
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    found = modules("train.questions").Reader(None).questions(tmp_path / "q.jsonl", answered=True)
    assert [(question.prompt, question.answer) for question in found] == [("a\u2028b\x85", "\u00e9"), ("c", "5")]


def test_answers_that_no_reward_compares_with(modules: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y", "answer": null}\n')
    found = modules("train.questions").Reader(None).questions(tmp_path / "q.jsonl", answered=False)
    assert [question.answer for question in found] == ["", ""]


@pytest.mark.parametrize("name", ["train.sft", "train.grpo"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--device", value) for value in ("abacus", "meta", "cpu:x", "")),
        *(("--seed", value) for value in (-1, "x", 1.5)),
        *(("--learning-rate", value) for value in ("nan", -1, "inf")),
        *(("--metrics", value) for value in ("file/m", "q.jsonl", ".")),
        *(("--tokenizer", value) for value in ("none.json", "file")),
    ],
)
def test_flags(
    name: str, flag: str, value: object, refused: Start, commands: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    refused(name, *commands[name], flag, value)


def test_the_largest_seed(modules: Any, commands: Any, refused: Start, tmp_path: Path) -> None:
    """Seeds of answers follow each other from one step to the next, so there are not that many of the run's."""
    module = modules("train.grpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo", *map(str, (*commands["train.grpo"], "--seed", module.SEEDS - 1))])
        module.learn(module.parse_arguments())
    assert json.loads((tmp_path / "metrics").read_text())["step"] == 1
    for seed in (module.SEEDS, 2**64, 2**200):
        refused("train.grpo", *commands["train.grpo"], "--seed", seed)


def broken_runs(run: Path) -> dict[str, Callable[[], object]]:
    step = run / "step_000001"
    return {
        "names nothing": lambda: (run / "latest").write_text(""),
        "names what is gone": lambda: (run / "latest").write_text("step_9\n"),
        "names in no letters": lambda: (run / "latest").write_bytes(b"\xff\xfe"),
        "no metadata": lambda: (step / ".metadata").unlink(),
        "other metadata": lambda: (step / ".metadata").write_bytes(b"xx"),
        "a part is gone": lambda: (step / "__0_0.distcp").unlink(),
        "a part is short": lambda: (step / "__0_0.distcp").write_bytes(b"xx"),
    }


@pytest.mark.parametrize("broken", broken_runs(Path()))
def test_checkpoints(broken: str, refused: Start, commands: Any, tmp_path: Path) -> None:
    run = tmp_path / "c"
    broken_runs(run)[broken]()
    assert str(run) in refused("train.sft", *commands["train.sft"], "--checkpoint", run, "--resume")
    assert str(run) in refused("train.export", "--checkpoint", run, "--out", tmp_path / "out")
    if broken.startswith("names"):
        assert str(run) in refused("train.grpo", *commands["train.grpo"])
        assert str(run) in refused("train.sft", *commands["train.sft"], "--start", run)
        assert str(run) in refused("infer.generate", "--checkpoint", run, "hi")


def test_another_trainers_run_is_not_gone_on_with(refused: Start, commands: Any, tmp_path: Path) -> None:
    said = refused("train.sft", *commands["train.sft"], "--checkpoint", tmp_path / "c", "--resume")
    assert "was trained with" in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"chat_template": "{% if"}'),
        ("tokenizer_config.json", '{"chat_template": "{{ 1 / 0 }}"}'),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", "[" * 100_000),
    ],
)
def test_files_beside_weights(name: str, text: str, refused: Start, tmp_path: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path / "c")
    (tmp_path / "c/step_000001" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", iter(["hello\n"]))
        said = refused("infer.generate", "--checkpoint", tmp_path / "c", "--chat")
    assert name in said or "template" in said


@pytest.mark.parametrize("reward", ["none:f", "math:pi", "os:getcwdb.x", ":", "unknown", ""])
def test_rewards(reward: str, refused: Start, commands: Any) -> None:
    assert f"--reward {reward}: " in refused("train.grpo", *commands["train.grpo"], "--reward", reward)


@pytest.mark.parametrize(
    ("command", "out"),
    [("prepare", "file"), ("prepare", "file/folder"), ("export", "file"), ("export", "file/folder")],
)
def test_folders_that_cannot_be(command: str, out: str, refused: Start, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, and a text")
    if command == "prepare":
        said = refused("train.data", "prepare", tmp_path / "file", "--out", tmp_path / out)
    else:
        said = refused("train.export", "--checkpoint", run, "--out", tmp_path / out)
    assert str(tmp_path / "file") in said


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        '{"dtype": "uint16", "shards": [{"file": 3, "tokens": 1, "crc32": 0}]}',
        '{"dtype": "uint16", "shards": [{"file": "../x", "tokens": 1, "crc32": 0}]}',
        '{"dtype": "uint16", "shards": [{"file": "x", "tokens": "1", "crc32": 0}]}',
        "[" * 100_000,
    ],
)
def test_indexes_of_shards(index: str, refused: Start, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(index)
    assert "is no index of shards" in refused("train.data", "check", tmp_path)


@pytest.mark.parametrize("text", ['{"text": "\\ud800"}\n', '{"text": 3}\n', "[" * 100_000])
def test_documents(text: str, refused: Start, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    assert "t.jsonl, " in refused("train.data", "prepare", tmp_path / "t.jsonl", "--out", tmp_path / "out")
