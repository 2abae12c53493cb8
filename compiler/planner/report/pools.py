"""What a plan of two pools says, as plain values and as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ruamel.yaml.comments import CommentedMap

from dsc.compiler.planner.report.plan import where
from dsc.compiler.planner.report.serving_record import serving_record
from dsc.compiler.planner.report.write import asked, inner, serving_body, text_of
from dsc.compiler.planner.serving.pools import Pools

POOLS = ("prefill", "decode")


def pools_record(pools: Pools) -> dict[str, Any]:
    problem = pools.decode.problem
    both = {name: serving_record(found) for name, found in zip(POOLS, (pools.prefill, pools.decode), strict=True)}
    return {
        "name": problem.spec.name,
        "mode": "serve",
        "fits": pools.fits,
        "cluster": problem.hardware.cluster.name,
        "prompt_tokens": pools.prompt,
        "answer_tokens": pools.answer,
        "nodes": dict(zip(POOLS, pools.nodes, strict=True)),
        "requests_per_second_offered": dict(zip(POOLS, pools.offered, strict=True)),
        "requests_per_second": pools.requests,
        "decode_gpus_for_one_of_prefill": pools.gpus_for_one,
        "dollars_per_million_tokens": _dollars(pools),
        "not_emitted": list(_not_emitted(both)),
        **both,
    }


def pools_yaml(pools: Pools) -> str:
    """Both plans in one file, under the names of the pools."""
    facts = pools_record(pools)
    problem, nodes = pools.decode.problem, sum(pools.nodes)
    body = CommentedMap((key, inner(value)) for key, value in facts.items() if key not in POOLS)
    body["prefill"], body["decode"] = (serving_body(one, indent=2) for one in (pools.prefill, pools.decode))
    options = asked(problem, pools.prefill.problem).replace("--mode decode", f"--mode serve --answer {pools.answer}")
    body.yaml_set_start_comment(
        f"Plan of {facts['name']} in two pools on {where(problem.hardware.of_nodes(nodes))}. Regenerate: "
        f"dsc plan {facts['name']} {options} --cluster {facts['cluster']} --nodes {nodes} -o FILE"
    )
    return text_of(body)


def _dollars(pools: Pools) -> float | None:
    price = pools.decode.problem.price
    return None if price is None or not pools.requests else pools.dollars(price)


def _not_emitted(both: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What the package has no code for yet."""
    yield "two pools: one engine takes prompts and writes answers, and no code moves a cache to another"
    yield from dict.fromkeys(text for one in both.values() for text in one["not_emitted"])
