"""Which rank writes a text: the one with fewest, or near enough the one that wrote its beginning before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving.test_ranks import MODELS, write_package

RANKS = 4


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> Any:
    folder: Path = tmp_path_factory.mktemp("front")
    write_package({**MODELS["deepseek"], "serving": {"ep": RANKS}}, "shared", folder)
    return package_at(folder / "shared")


class Followers:
    """Ranks that write one token of each text in a step, and end a text with its first 9."""

    def __init__(self, front: Any) -> None:
        self.front, self.rank = front, 0
        self.given: list[dict[int, list[int]]] = [{} for _ in range(RANKS)]
        """By rank, the prompts of texts that it writes."""

    def deal(self, orders: list[Any]) -> Any:
        for given, order in zip(self.given, orders, strict=True):
            given.update({number: prompt for number, prompt, _ in order.texts})
            for number in order.cancelled:
                del given[number]
        return self.front.Orders()

    def collect(self, _: Any) -> list[Any]:
        reports = []
        for given in self.given:
            ended = {number: "stop" if prompt[0] == 9 else None for number, prompt in given.items()}
            reports.append(self.front.Report([self.front.News(n, [9], [], why) for n, why in ended.items()], 0, 0, 0))
            for number in [number for number, why in ended.items() if why]:
                del given[number]
        return reports


@pytest.fixture
def parts(package: Any) -> tuple[Any, Followers]:
    module = package("infer.front")
    followers = Followers(module)
    scheduler = SimpleNamespace(check=lambda text: None, running=[], waiting=[])
    engine = SimpleNamespace(scheduler=scheduler, pool=SimpleNamespace(free=[]), ranks=followers, step=list)
    return module.Front(engine), followers


def ranks_of(front: Any, followers: Followers, prompts: list[list[int]]) -> list[int]:
    """Where each goes, in the order of arrival."""
    found = []
    for prompt in prompts:
        before = [len(given) for given in followers.given]
        front.submit(prompt)
        front._deal()
        (rank,) = [rank for rank in range(RANKS) if len(followers.given[rank]) > before[rank]]
        found.append(rank)
    return found


def test_texts_go_where_fewest_are(parts: tuple[Any, Followers]) -> None:
    front, followers = parts
    assert ranks_of(front, followers, [[index] for index in range(6)]) == [0, 1, 2, 3, 0, 1]


def test_a_beginning_goes_where_it_was_until_that_rank_has_many_more(parts: tuple[Any, Followers]) -> None:
    front, followers = parts
    page = list(range(10, 26))
    assert ranks_of(front, followers, [[1], [*page, 1], [*page, 2]]) == [0, 1, 1]
    assert ranks_of(front, followers, [[*page, 3], [*page, 4], [*page, 5]]) == [1, 1, 1], "four more are near enough"
    assert ranks_of(front, followers, [[*page, 6]]) == [2]
    assert ranks_of(front, followers, [[*page, 7]]) == [2], "where it was last"


def test_a_prompt_without_a_whole_page_has_no_home(parts: tuple[Any, Followers]) -> None:
    """The last token is computed in any case, so a page that is all of the prompt cannot be found."""
    front, followers = parts
    page = list(range(10, 26))
    assert ranks_of(front, followers, [page, page]) == [0, 1]


def test_ended_and_cancelled_texts_count_no_more(parts: tuple[Any, Followers]) -> None:
    front, followers = parts
    ends, goes_on = front.submit([9]), front.submit([1])
    assert dict(front.step()) == {ends: [9], goes_on: [9]}
    assert ends.ended == "stop" and ends.new_tokens == [9] and goes_on.ended is None and not front.idle
    front.cancel(goes_on)
    front.cancel(ends)  # has ended before: nothing changes
    assert front.idle and ends.ended == "stop" and goes_on.ended == "cancelled"
    front.step()
    assert not any(followers.given) and front.made == 2
    assert ranks_of(front, followers, [[2]]) == [0]


def test_ranks_of_a_group_get_the_same_texts_and_groups_others(
    tmp_path_factory: pytest.TempPathFactory, package_at: Any
) -> None:
    """Two groups of two, which are neighbours by number; a report of one rank is that of its group."""
    folder: Path = tmp_path_factory.mktemp("groups")
    write_package({**MODELS["deepseek"], "vocab_size": 84, "serving": {"tp": 2, "ep": RANKS}}, "divided", folder)
    module = package_at(folder / "divided")("infer.front")
    dealt: list[list[Any]] = []
    scheduler = SimpleNamespace(check=lambda text: None, running=[], waiting=[])
    ranks = SimpleNamespace(
        deal=lambda orders: dealt.append(orders) or orders[0],
        collect=lambda report: [report, report, *[module.Report([], 7, 0, 0)] * 2],
    )
    engine = SimpleNamespace(scheduler=scheduler, pool=SimpleNamespace(free=[]), ranks=ranks, step=list)
    front = module.Front(engine)
    engine.submit = lambda prompt, sampling: object()
    for first in range(3):
        front.submit([first])
    front.step()
    prompts = [[prompt for _, prompt, _ in orders.texts] for orders in dealt[0]]
    assert prompts == [[[0], [2]], [[0], [2]], [[1]], [[1]]]
    assert [report.running for report in front.reports] == [0, 7]
