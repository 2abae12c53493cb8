"""The goldens as programs: they import, have the parameters that the graph counts, and at small sizes they train."""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.facts.stats import compute_stats
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]
GENERATED = Path(__file__).parents[2] / "generated"
SPECS: tuple[str, ...] = runpy.run_path(str(Path(__file__).parents[1] / "accept_goldens.py"))["SPECS"]


@pytest.mark.parametrize("name", SPECS)
def test_every_module_imports(name: str, package_at: Callable[[Path], Importer]) -> None:
    folder = GENERATED / load(name).package_name
    golden = package_at(folder)
    for path in sorted(folder.rglob("*.py")):
        if path.name != "__init__.py":
            golden(path.relative_to(folder).with_suffix("").as_posix().replace("/", "."))


@pytest.mark.parametrize("name", SPECS)
def test_parameters_are_those_of_the_graph(name: str, package_at: Callable[[Path], Importer]) -> None:
    program = build(load(name))
    with torch.device("meta"):
        model = package_at(GENERATED / program.spec.package_name)("model").Model()
    emitted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    graph = program.training.parameters()
    assert emitted == {name: tuple(dim.value() for dim in p.type.shape) for name, p in graph.items()}
    stats = compute_stats(program.spec, program.training).parameters
    assert stats.total + stats.mtp == sum(parameter.numel() for parameter in model.parameters())


def constants_removed(files: Mapping[str, str]) -> dict[str, list[str]]:
    """The Python lines of a package, less assignments of constants and the entries of CONFIG.

    Tiles of kernels, which are tables too, follow the dims: kernels are held by their own tests.
    """
    return {
        name: [line for line in text.splitlines() if not line.split(" ")[0].isupper() and not line.startswith('    "')]
        for name, text in files.items()
        if name.endswith(".py") and not name.startswith("kernels/")
    }


@pytest.fixture(params=SPECS)
def small(request: pytest.FixtureRequest, shrunk: Callable[[ModelSpec], ModelSpec]) -> Program:
    return build(shrunk(load(request.param)))


def test_small_packages_are_the_goldens_with_other_constants(small: Program) -> None:
    data = small.spec.model_dump()
    if data["attention"].get("kind") == "mla" and data["cluster"]:  # widths that all kernels take, as the goldens' are
        data["attention"] |= {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
    small = build(ModelSpec.model_validate(data))
    folder = GENERATED / small.spec.package_name
    golden = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert constants_removed(emit(small)) == constants_removed(golden)


def test_small_packages_train_and_generate(small: Program, emitted: Callable[[Mapping[str, str]], Importer]) -> None:
    package = emitted(emit(small))
    torch.manual_seed(0)
    model = package("model").Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(0, small.spec.vocab_size, (2, 17))
    losses = []
    for _ in range(3):
        loss, parts = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert torch.isclose(loss, torch.stack(list(parts.values())).sum())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    logits = model(tokens)
    assert logits.shape == (2, 17, small.spec.vocab_size) and logits.isfinite().all()
    new = package("infer.engine").Engine(model).generate([[1, 2, 3], [4]], max_new_tokens=5)
    assert [len(row) for row in new] == [5, 5]
    assert new[0][0] == model(torch.tensor([[1, 2, 3]]))[0, -1].argmax()
