"""What a bad spec is told: every folder of tests/errors is a spec and the text that `dsc check` prints about it.

The folder's name starts with the code that the spec is there for. After a change of wording, `DSC_ACCEPT=1 pytest
tests/test_errors.py` writes the expectations anew; the diff of the stderr.txt files is then what to review.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest

from dsc.spec.errors import Code, DscError, Finding, Position
from dsc.spec.loader import load, loads
from dsc.spec.model import ModelSpec
from dsc.spec.pages import PAGES
from dsc.spec.report import render, sources_of
from dsc.spec.yaml import MAX_DEPTH, read

ERRORS = Path(__file__).parent / "errors"
# Codes of other inputs than specs, whose tests are elsewhere: config.json (DSC03x), packages (DSC04x), plans (DSC07x).
ELSEWHERE = {"DSC030", "DSC031", "DSC040", "DSC041", "DSC042", "DSC043", "DSC044", "DSC070", "DSC071", "DSC072"}
VALID = (ERRORS / "valid.yaml").read_text()
CASES = sorted(path.parent.name for path in ERRORS.glob("*/spec.yaml"))


def findings(text: str | bytes, file: str = "spec.yaml") -> list[Finding]:
    """What is wrong with a spec; nothing where it loads."""
    try:
        loads(text, file)
    except DscError as error:
        return list(error.findings)
    return []


def assert_only(text: str | bytes, code: str, line: int, column: int, part: str) -> None:
    """One finding, at its place."""
    (finding,) = findings(text)
    assert (finding.code, finding.position) == (code, Position("spec.yaml", line, column))
    assert part in finding.message
    assert finding.help


def test_the_base_of_the_cases_is_valid() -> None:
    assert findings(VALID) == []


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("sequence_length: 4096", "sequence_length: 8192"),
        ("original_max_position_embeddings: 1024", "original_max_position_embeddings: 8192"),
        ("beta_fast: 32.0", "beta_fast: 1.0"),
        ("num_experts_per_tok: 4", "num_experts_per_tok: 8"),
        ("n_group: 4", "n_group: 8"),
        ("repeat: 4", "repeat: 9999"),
        ("sequence_length: 4096", "sequence_length: 2"),
        ("name: valid", "name: model"),
        ("name: valid", "name: match"),
    ],
)
def test_what_just_fits_is_accepted(given: str, instead: str) -> None:
    assert given in VALID
    assert findings(VALID.replace(given, instead)) == []


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    text = (ERRORS / case / "spec.yaml").read_bytes()
    found = findings(text)
    assert case.split("-")[0] in {finding.code for finding in found}
    assert all(finding.help and finding.position for finding in found)
    report = render(found, "human", {"spec.yaml": text.decode()})
    expected = ERRORS / case / "stderr.txt"
    if os.environ.get("DSC_ACCEPT"):
        expected.write_text(report)
    assert report == expected.read_text()


def test_every_code_has_a_page_and_a_case() -> None:
    codes = set(get_args(Code))
    assert codes == set(PAGES)
    # Files that a repository does not hold well, such as huge and binary ones, are made by the tests below.
    assert codes == {case.split("-")[0] for case in CASES} | {"DSC001", "DSC002"} | ELSEWHERE


@pytest.mark.parametrize("code", sorted(PAGES.keys() - ELSEWHERE))
def test_pages_show_what_they_say(code: Code) -> None:
    page = PAGES[code]
    if code in ("DSC001", "DSC002"):
        return  # these show command lines and what cannot be shown; the tests of files and paths below hold them
    if code < "DSC010":
        assert code in {finding.code for finding in findings(page.wrong)}
        assert code not in {finding.code for finding in findings(page.right)}
    else:
        assert {finding.code for finding in findings(laid_over_valid(page.wrong))} == {code}
        assert findings(laid_over_valid(page.right)) == []


def laid_over_valid(fragment: str) -> str:
    """The valid spec with the keys of a fragment replaced; JSON is YAML."""
    return json.dumps(overlay(read(VALID, "").root, read(fragment, "").root), indent=1)


def names_sections(value: dict[str, Any]) -> bool:
    """Whether a mapping is of attentions by name, where the valid spec has one."""
    return all(isinstance(inner, dict) and "kind" in inner for inner in value.values())


def overlay(base: Any, over: Any) -> Any:
    """Mappings merge; an empty one, and one of another kind, replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        merges = isinstance(value, dict) and isinstance(below, dict) and value and not names_sections(value)
        if merges and value.get("kind", below.get("kind")) == below.get("kind"):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return merged


# Schema and semantics in one run: what the schema refuses does not hide what rules say of the rest.

RULES = [case for case in CASES if case[:6] > "DSC016" and not case.endswith(("at-once", "beside-the-schema"))]


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize(
    ("line", "instead", "code"),
    [
        ("tie_word_embeddings: false", "tie_word_embeddings: many", "DSC010"),
        ("  hidden: post_norm", "  hiden: post_norm", "DSC014"),
        ("  eps: 1.0e-6", "  eps: 0.0", "DSC011"),
    ],
)
def test_rules_hold_beside_what_the_schema_refuses(case: str, line: str, instead: str, code: str) -> None:
    text = (ERRORS / case / "spec.yaml").read_text()
    assert line in text
    codes = [finding.code for finding in findings(text.replace(line, instead, 1))]
    assert sorted(codes) == sorted([code, *(finding.code for finding in findings(text))])


@pytest.mark.parametrize("number", range(len(VALID.splitlines())))
def test_nothing_is_said_that_only_follows_from_what_was_not_read(number: int) -> None:
    """Each key of the valid spec in turn: its value spoiled, its name misspelt, its line left out."""
    lines = VALID.splitlines(keepends=True)
    name, _, value = lines[number].partition(": ")
    spoiled = [f"{name}: !no {value}", f"{name}: [{{}}]\n"] if value else []
    for text in (*spoiled, lines[number].replace(":", "x:", 1), ""):
        codes = {finding.code for finding in findings("".join([*lines[:number], text, *lines[number + 1 :]]))}
        # Optional sections that are left out are other models, which rules may refuse.
        assert all(code < "DSC016" for code in codes) or not text


# Files: what the text of a spec may not be.


def test_bytes_that_are_not_utf8() -> None:
    assert_only(b"name: valid\nvocab_size: \xff\n", "DSC002", 2, 13, "0xFF")
    assert_only(VALID.encode("utf-16"), "DSC002", 1, 1, "UTF-16")
    assert_only(b"name: caf\xc3", "DSC002", 1, 10, "0xC3")


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x85", "\u2028", "\u202e", "\ufeff", "\ud800"])
def test_characters_that_hide(character: str) -> None:
    assert_only(f"name: valid\nvo{character}cab_size: 512\n", "DSC002", 2, 3, f"U+{ord(character):04X}")


def test_a_byte_order_mark_and_any_line_ends_are_accepted() -> None:
    for text in (
        "\ufeff" + VALID,
        VALID.replace("\n", "\r\n"),
        VALID.replace("\n", "\r"),
        "--- # spec\n" + VALID + "...\n",
    ):
        assert loads(text.encode(), "spec.yaml") == loads(VALID, "spec.yaml")


def test_positions_count_characters_and_any_line_ends() -> None:
    assert_only(VALID.replace("valid\n", "valid # caf\u00e9\r\n").replace("256", "x").encode(), "DSC010", 4, 1, "'x'")
    assert_only(VALID.replace("\n", "\r").replace("  kind: h800", "  kind: h80"), "DSC065", 60, 3, "'h80'")


def test_large_files() -> None:
    assert_only("# " + "x" * 2**20, "DSC004", 1, 1, "256 KiB")
    assert_only(b"\xff" * (2**20 + 1), "DSC004", 1, 1, "256 KiB")
    assert_only("name: valid\n# " + "x" * 5000, "DSC004", 2, 1, "5002 characters")
    assert_only("a:\n" + "- 1\n" * 50_000, "DSC004", 4996, 3, "5000 values")


@pytest.mark.parametrize("opening", ["[", "- ", "? ", "{a: ", "{? "])
def test_deep_files(opening: str) -> None:
    last = findings(opening * 1000)[-1]
    assert last.code == "DSC004" and "32 levels" in last.message
    assert last.position is not None and last.position.column <= len(opening) * (MAX_DEPTH + 2)


def test_deep_files_of_many_lines() -> None:
    assert_only("[\n" * 60_000, "DSC004", MAX_DEPTH + 2, 1, "32 levels")


def test_a_billion_laughs() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    found = [finding for finding in findings(bomb) if finding.code != "DSC014" and finding.code != "DSC013"]
    assert {finding.code for finding in found} == {"DSC005"}
    assert len(found) == 9 + 16


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 4000, "0o" + "7" * 4000, "1." + "0" * 4000]
)
def test_numbers_of_thousands_of_digits(number: str) -> None:
    number = number[:4000]
    assert_only(VALID.replace("512", number), "DSC004", 3, 1, "a number of 4000 characters")
    assert_only(VALID.replace("512", f'"{number}"'), "DSC010", 3, 1, "not a whole number")
    assert {finding.code for finding in findings(f"%YAML {number}.1\n---\n{VALID}")} == {"DSC003"}


def calls(text: str) -> int:
    """How many functions are called to find what is wrong with a text: work that no busy machine changes."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        assert findings(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("start", "more"),
    [
        ("", "!" * 1000),
        ("", "- " + "!" * 4000 + "\n"),
        ('"', "x" * 1000),
        ("", "%A b\n" * 1000),
        ("mtp: |\n", "  x\n" * 1000),
    ],
)
def test_slow_tokens_cost_in_proportion(start: str, more: str) -> None:
    """The parser takes quadratic time over longer ones, which are refused before it sees them."""
    assert calls(start + more * 4) <= 4.4 * calls(start + more)


def test_escapes_beyond_unicode() -> None:
    for escape in ("\\U00110000", "\\UFFFFFFFF"):
        assert_only(f'name: "{escape}"', "DSC003", 1, 1, "not YAML")


def test_many_findings_cost_in_proportion() -> None:
    texts = ["".join(f"zebra_{number}: 1\n" for number in range(count)) for count in (300, 1200)]
    assert calls(texts[1]) <= 4.4 * calls(texts[0])
    assert [len(findings(text)) for text in texts] == [300 + 8, 1200 + 8]


# Numbers and words as YAML 1.2 reads them.


@pytest.mark.parametrize("text", ["512", "+512", "0512", "0x200", "0o1000"])
def test_integers(text: str) -> None:
    assert loads(VALID.replace("vocab_size: 512", f"vocab_size: {text}"), "spec.yaml").vocab_size == 512


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-06", ".000001", "+1.e-6"])
def test_floats(text: str) -> None:
    assert loads(VALID.replace("eps: 1.0e-6", f"eps: {text}"), "spec.yaml").norm.eps == 1e-6


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_null(text: str) -> None:
    spec = loads(VALID.replace("q_lora_rank: 128", f"q_lora_rank: {text}"), "spec.yaml")
    assert spec.attention.kind == "mla" and spec.attention.q_lora_rank is None


# Paths.


def unreadable(source: str | Path) -> Finding:
    with pytest.raises(DscError) as raised:
        load(source)
    (finding,) = raised.value.findings
    assert finding.code == "DSC001" and finding.help and finding.position == Position(str(source), 1, 1)
    return finding


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(VALID)
    assert load("spec.yaml") == load(tmp_path / "spec.yaml")
    assert load("deepseek-v3").name == "deepseek-v3"
    Path("tiny").mkdir()  # where `dsc compile tiny` writes
    assert load("tiny").name == "tiny"
    Path("deepseek-v3").write_text(VALID)
    assert load("deepseek-v3").name == "valid"


def test_nearest_name_of_the_zoo() -> None:
    assert unreadable("deepsek-v3").help == "did you mean 'deepseek-v3'?"
    assert unreadable("models/deepsek-v3.yaml").help == "did you mean 'deepseek-v3'?"
    assert unreadable("zebra").help == "`dsc zoo` lists the models"
    for source in ("../models/tiny", "tiny.yaml", "*", ""):
        unreadable(source)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    assert "a folder" in unreadable(tmp_path).message
    assert "not a regular file" in unreadable(tmp_path / "pipe").message
    assert "not a regular file" in unreadable("/dev/zero").message
    assert "not a directory" in unreadable(tmp_path / "file" / "spec.yaml").message
    for source in (tmp_path / "loop", "a\x00b", "x" * 5000):
        unreadable(source)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads every file: be nobody for a while."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "spec.yaml")
        path.write_text(VALID)
        with unprivileged():
            assert load(path).name == "valid"
        path.chmod(0)
        with unprivileged():
            assert "permission denied" in unreadable(path).message


# Reports.

FINDING = Finding("DSC014", "unknown key 'a'", ("ffn", "a"), "50% of\nall, or so", Position("a,b:c.yaml", 2, 3))


def test_json() -> None:
    (record,) = json.loads(render([FINDING], "json", {}))["findings"]
    assert record["key"] == ["ffn", "a"]
    assert (record["file"], record["line"], record["column"]) == ("a,b:c.yaml", 2, 3)
    (record,) = json.loads(render([Finding("DSC001", "no")], "json", {}))["findings"]
    assert record == {
        "code": "DSC001",
        "message": "no",
        "help": None,
        "key": [],
        "file": None,
        "line": None,
        "column": None,
    }


def test_github() -> None:
    expected = "::error file=a%2Cb%3Ac.yaml,line=2,col=3,title=DSC014::unknown key 'a'%0Ahelp: 50%25 of%0Aall, or so\n"
    assert render([FINDING], "github", {}) == expected


def test_human_shows_part_of_a_long_line_and_nothing_that_moves_the_cursor() -> None:
    finding = Finding("DSC014", "bad", ("key",), None, Position("a\x1bb", 1, 2001))
    first, line, caret = render([finding], "human", {"a\x1bb": "x" * 2000 + "key\x1b\t" + "y" * 2000}).splitlines()
    assert first == "a?b:1:2001: error[DSC014]: bad"
    assert line == " 1 | " + "x" * 50 + "key? " + "y" * 45
    assert caret == "   | " + " " * 50 + "^^^"


def test_sources_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: \xff\n")
    at = [Finding("DSC002", "no", position=Position(str(file), 1, 7)) for file in (path, tmp_path, "a\x00b", "none")]
    assert sources_of(at) == {str(path): "name: \ufffd\n"}


def test_a_spec_loads_into_the_model() -> None:
    assert isinstance(loads(VALID, "spec.yaml"), ModelSpec)
