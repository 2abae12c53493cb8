"""What all tests of numerics share: one thread, fresh seeds, and packages compiled once."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1]))  # tests import their helpers as numerics.*

from numerics.families import CASES, Case
from numerics.harness import Compile, Oracle, OracleOf, Package, compile_package, make_oracle

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Packages by the text of their spec, each compiled once in a session."""
    packages: dict[str, Package] = {}

    def compile_once(text: str) -> Package:
        if text not in packages:
            packages[text] = compile_package(text, tmp_path_factory.mktemp("package"))
        return packages[text]

    return compile_once


@pytest.fixture(scope="session")
def oracle_of(tmp_path_factory: pytest.TempPathFactory) -> OracleOf:
    """transformers' model of a case with its checkpoint, each made once in a session."""
    oracles: dict[Case, Oracle] = {}

    def make_once(case: Case) -> Oracle:
        if case not in oracles:
            oracles[case] = make_oracle(case, tmp_path_factory.mktemp(case.family))
        return oracles[case]

    return make_once


@pytest.fixture(params=[case for case in CASES if case.is_base], ids=str)
def family(request: pytest.FixtureRequest) -> Case:
    """One case of each family."""
    case: Case = request.param
    return case
