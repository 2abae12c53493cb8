"""spec/README.md, the page of the language: it is current, it has every key, and its facts are true."""

from pathlib import Path

import pytest

from breaking.changes import CHANGES, Change, language
from dsc.compiler.hf import export_config, family
from dsc.compiler.hf.keys import config_key
from dsc.spec.model import ModelSpec
from dsc.spec.reference import entries
from dsc.spec.words import flat

PAGE = Path(__file__).parents[2] / "spec" / "README.md"


def test_every_key_has_a_description_and_the_page_is_current() -> None:
    """`make goldens` writes spec/README.md."""
    assert not [entry.key for entry in entries() if not entry.text]
    assert PAGE.read_text(encoding="utf-8") == language()


def test_every_key_of_the_schema_is_on_the_page() -> None:
    listed = {entry.key.rpartition(".")[2] for entry in entries()}
    schema = ModelSpec.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert {name for section in sections for name in section.get("properties", ())} <= listed


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_keys_have_the_names_that_export_gives_them(change: Change) -> None:
    """A change of the key changes that entry of config.json; what is not of the model changes none."""
    old, new = change.specs()
    if family(old) is None or family(old) != family(new):
        return
    before, after = (dict(flat(export_config(spec))) for spec in (old, new))
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if (name := config_key(change.schema_key)) is not None:
        assert name in changed
    elif change.key.split(".")[0] in ("name", "z_loss", "placement", "cluster", "workload", "training"):
        assert not changed
