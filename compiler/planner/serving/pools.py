"""One pool of GPUs that takes prompts and one that writes answers: how many nodes each, and what both can serve.

Every request has a prompt and an answer of so many tokens. The pools are in balance where neither waits for the other:
with fewer nodes for prompts they arrive too slowly, with more the answers are written too slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsc.compiler.planner.serving.deployment import ServingFound, make_serving_plan
from dsc.compiler.planner.serving.problem import ServingProblem


@dataclass(frozen=True)
class Pools:
    prefill: ServingFound
    decode: ServingFound
    answer: int
    """Tokens of an answer; the prompt's are the context of prefill."""

    @property
    def fits(self) -> bool:
        return self.prefill.fits and self.decode.fits

    @property
    def meets(self) -> bool:
        return self.prefill.meets and self.decode.meets

    @property
    def prompt(self) -> int:
        return self.prefill.problem.context

    @property
    def nodes(self) -> tuple[int, int]:
        return self.prefill.problem.hardware.nodes, self.decode.problem.hardware.nodes

    @property
    def offered(self) -> tuple[float, float]:
        """Requests a second that each pool could take."""
        return _rate(self.prefill, self.prompt), _rate(self.decode, self.answer)

    @property
    def requests(self) -> float:
        """A second, of both."""
        return min(self.offered)

    @property
    def gpus_for_one(self) -> float:
        """GPUs that write answers for each that takes prompts, where both are always busy."""
        prompts, answers = (speed / found.problem.world for speed, found in zip(self.offered, self._both, strict=True))
        return prompts / answers if answers else 0.0

    @property
    def _both(self) -> tuple[ServingFound, ServingFound]:
        return self.prefill, self.decode

    def dollars(self, price: float) -> float:
        """Of a million tokens, of prompts and answers alike, at so many dollars for an hour of a GPU."""
        gpus = sum(found.problem.world for found in self._both)
        return gpus * price / 3600 / (self.requests * (self.prompt + self.answer)) * 1e6


def make_pools(prefill: ServingProblem, decode: ServingProblem, answer: int) -> Pools:
    """Of the nodes that both problems have, at least two. Raises DscError where pins do not suit a pool."""
    nodes = prefill.hardware.nodes
    assert nodes > 1, "one node is one pool"
    known: dict[int, Pools] = {}

    def split(count: int) -> Pools:
        """So many nodes for prompts."""
        if count not in known:
            known[count] = Pools(_on(prefill, count), _on(decode, nodes - count), answer)
        return known[count]

    low, high = 1, nodes - 1
    guess = _guess(split(nodes // 2), nodes)
    while low < high:
        prompts, answers = split(guess).offered
        low, high = (guess + 1, high) if prompts < answers else (low, guess)
        guess = min(max(_guess(split(guess), nodes), low), high - 1) if low < high else low
    return max((split(count) for count in {max(1, low - 1), low}), key=lambda one: (one.meets, one.fits, one.requests))


def _guess(pools: Pools, nodes: int) -> int:
    """Where the pools would be in balance if a GPU's speed did not change."""
    prompts, answers = pools.offered
    if not prompts or not answers:
        return nodes // 2
    share = answers / pools.nodes[1] / (prompts / pools.nodes[0] + answers / pools.nodes[1])
    return min(max(1, round(share * nodes)), nodes - 1)


def _on(problem: ServingProblem, nodes: int) -> ServingFound:
    return make_serving_plan(problem.on(nodes))


def _rate(found: ServingFound, tokens: int) -> float:
    return found.chosen.speed.of_all / tokens if found.chosen.speed else 0.0
