"""Run in a process of its own: what an engine of several ranks writes, beside what one process does.

    python ranks.py FOLDER PACKAGE ALONE RANKS

FOLDER holds both packages, of one spec for RANKS ranks and for one, and gets a checkpoint. Prints JSON. Ranks are
forked, so that each does not import torch anew; nothing has run threads before.
"""

import json
import math
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Drawn = list[tuple[list[int], dict[str, Any]]]
"""Prompts, and how each is written."""


def drawn(vocabulary: int) -> Drawn:
    """Nine texts: greedy and sampled ones, short and longer than a page, two with a beginning of others."""
    numbers = random.Random(3)
    prompts = [[numbers.randrange(vocabulary) for _ in range(size)] for size in (1, 5, 40, 17, 33, 3, 20)]
    prompts += [[*prompts[2][:32], 7, 8], prompts[4][:]]
    return [
        (prompt, {"max_new_tokens": 6 + 4 * (index % 4), "temperature": 0.8 * (index % 2), "seed": index})
        for index, prompt in enumerate(prompts)
    ]


def make_checkpoint(alone: str, folder: Path) -> Any:
    """Weights that make texts vary, written and returned as a model."""
    torch.manual_seed(0)
    model = import_module(f"{alone}.model").Model()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    import_module(f"{alone}.checkpoint").save_hf(model, folder)
    return model.eval()


def written_alone(alone: str, model: Any, texts: Drawn) -> list[list[int]]:
    """Each text by itself, without guesses, in one process."""
    engine_module, sampling = (import_module(f"{alone}.infer.{name}") for name in ("engine", "sampling"))
    engine, found = engine_module.Engine(model, cache_bytes=2**22), []
    for prompt, how in texts:
        text = engine.submit(prompt, sampling.Sampling(**how))
        while text.ended is None:
            engine.step()
        found.append(text.new_tokens)
    return found


class Rank:
    """One rank, inside its process."""

    def __init__(self, package: str, ranks: Any, folder: Path, texts: Drawn) -> None:
        self.package, self.ranks, self.rank, self.folder = package, ranks, ranks.rank, folder
        dims = import_module(f"{package}.dims")
        self.last = dims.SERVING_RANKS - 1
        tensor_ranks = getattr(dims, "TENSOR_RANKS", 1)
        self.group, self.last_group = self.rank // tensor_ranks, self.last // tensor_ranks
        self.sampling = self.module("sampling").Sampling
        self.texts = [(prompt, self.sampling(**how)) for prompt, how in texts]

    def module(self, name: str) -> Any:
        return import_module(f"{self.package}.infer.{name}")

    def engine(self, loads: Any = None, **options: Any) -> Any:
        model = self.module("share").load_share(self.folder, self.rank, *([] if loads is None else [loads]))
        return self.module("engine").Engine(model, self.ranks, **{"cache_bytes": 2**22, **options})

    def run_dry(self, engine: Any) -> int:
        """Steps with all others until none has work; in how many this rank had none."""
        idle = 0
        while True:
            had_none = engine.scheduler.idle
            engine.step()
            if not engine.working:
                return idle
            idle += had_none

    @property
    def few_bytes(self) -> int:
        """Of nine pages: two of the texts do not fit at once."""
        caches = self.module("decode").empty_caches(1, torch.zeros(1))
        return 9 * sum(cache.nbytes for cache in caches)


def uneven(rank: Rank, **options: Any) -> Any:
    """The first group has most texts, the last one none at first; later ones find pages of those that began alike."""
    engine, group = rank.engine(**options), rank.group
    mine = list(range(5)) if group == 0 else [5 + (group - 1) % 2] if group < rank.last_group else []
    texts = {index: engine.submit(*rank.texts[index]) for index in mine}
    idle = rank.run_dry(engine)
    again = {index: engine.submit(*rank.texts[index]) for index in ((7, 8) if group == 0 else (6,))}
    engine.step()
    hits = {index: text.shared for index, text in again.items()}
    idle += rank.run_dry(engine)
    return {
        "texts": {index: text.new_tokens for index, text in {**texts, **again}.items()},
        "idle": idle,
        "hits": hits,
        "guesses": engine.speculation.drafted if hasattr(engine, "speculation") else 0,
        "pages": len(engine.pool.free) == len(engine.pool.holders) - 1,
    }


def dealt(rank: Rank, **options: Any) -> Any:
    """Rank 0 has all texts; some come later, and one is cancelled."""
    found: dict[int, list[int]] = {}
    engine = rank.engine(**options)

    def lead(front: Any) -> None:
        texts = {index: front.submit(*rank.texts[index]) for index in range(4)}
        cancelled = front.submit(*rank.texts[2])
        for _ in range(3):
            front.step()
        front.cancel(cancelled)
        texts |= {index: front.submit(*rank.texts[index]) for index in range(4, 9)}
        while not front.idle:
            front.step()
        front.step()  # nobody has anything
        found.update({index: text.new_tokens for index, text in texts.items()})
        found[9] = front.generate([rank.texts[0][0], rank.texts[1][0]], 5)[0]
        found[10] = list(front.stream(*rank.texts[3]))
        assert cancelled.ended == "cancelled" and all(text.ended == "length" for text in texts.values())

    rank.module("front").lead_or_follow(engine, lead)
    return {"texts": found, "pages": len(engine.pool.free) == len(engine.pool.holders) - 1}


def failing(rank: Rank) -> Any:
    """The last rank raises in its third step."""
    engine, steps = rank.engine(), iter(range(3))
    plan = engine.scheduler.plan

    def failing_plan() -> Any:
        if rank.rank == rank.last and next(steps) == 2:
            raise ValueError("planted")
        return plan()

    engine.scheduler.plan = failing_plan
    engine.submit(*rank.texts[0])
    rank.run_dry(engine)


def logprobs(rank: Rank, **options: Any) -> Any:
    """What is likeliest behind each token, from steps of a few tokens and guesses; of the texts that all ranks have."""
    engine = rank.engine(step_tokens=24, **options)
    hows = [replace(how, temperature=0.0, logprobs=5) for _, how in rank.texts]
    texts = [engine.submit(prompt, how) for (prompt, _), how in zip(rank.texts, hows, strict=True)]
    rank.run_dry(engine)
    return [{"tokens": text.tokens, "logprobs": [list(row.items()) for row in text.logprobs]} for text in texts]


def copied(rank: Rank) -> Any:
    """Experts by uneven loads; a few texts without a common beginning, and what went to each expert."""
    dims = import_module(f"{rank.package}.dims")
    engine = rank.engine([[8.0, 4.0, *[1.0] * (dims.NUM_EXPERTS - 2)]] * dims.NUM_MOE_LAYERS, speculate=False)
    texts = {index: engine.submit(*rank.texts[index]) for index in range(rank.group, 7, rank.last_group + 1)}
    rank.run_dry(engine)
    return {"texts": {index: text.new_tokens for index, text in texts.items()}, "loads": engine.loads()}


SCENES: dict[str, Callable[[Rank], Any]] = {
    "uneven": uneven,
    "uneven, without guesses": lambda rank: uneven(rank, speculate=False),
    "dealt": dealt,
    "crowded": lambda rank: dealt(rank, cache_bytes=rank.few_bytes),
    "failing": failing,
    "logprobs": logprobs,
    "logprobs beside an engine": lambda rank: logprobs(rank, speculate=False),
    "copied": copied,
}


def rank_main(rank: int, port: int, folder: Path, package: str, scene: str, texts: Drawn, ranks: int) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=float(os.environ.get("PATIENCE", "120")))
    dist.init_process_group = partial(dist.init_process_group, timeout=patience)  # a rank that waits for ever fails
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    found: Any
    try:
        with import_module(f"{package}.infer.ranks").Ranks() as group:
            found = SCENES[scene](Rank(package, group, folder, texts))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(found))


def apart(alone: str, model: Any, texts: Drawn, found: list[Any]) -> float:
    """By how much logarithms of probabilities differ from those of an engine of one process in the same steps; by any
    amount where tokens do."""
    engine_module, sampling = (import_module(f"{alone}.infer.{name}") for name in ("engine", "sampling"))
    engine, most = engine_module.Engine(model, cache_bytes=2**22, speculate=False, step_tokens=24), 0.0
    hows = [sampling.Sampling(**{**how, "temperature": 0.0, "logprobs": 5}) for _, how in texts]
    ours = [engine.submit(prompt, how) for (prompt, _), how in zip(texts, hows, strict=True)]
    while not engine.scheduler.idle:
        engine.step()
    for text, theirs in zip(ours, found, strict=True):
        if text.tokens != theirs["tokens"]:
            return math.inf
        pairs = zip(text.logprobs, map(dict, theirs["logprobs"]), strict=True)
        most = max([most, *(abs(row[token] - other[token]) for row, other in pairs for token in row.keys() & other)])
    return most


def farthest(model: Any, texts: Any) -> float:
    """By how much logarithms of probabilities differ from those of the model's own forward over a whole text."""
    most = 0.0
    for text in texts:
        rows, begin = text["logprobs"], len(text["tokens"]) - len(text["logprobs"])
        with torch.no_grad():
            whole = model(torch.tensor([text["tokens"]]))[0].log_softmax(-1)
        pairs = ((value, whole[begin + place - 1, token]) for place, row in enumerate(rows) for token, value in row)
        most = max(most, *(abs(float(ours - theirs)) for ours, theirs in pairs))
    return most


def went_to(model: Any, texts: list[list[int]]) -> list[list[int]]:
    """How many tokens of whole texts a model sends to each expert, mixture by mixture; the last token is not read."""
    routers = [layer.mlp.gate for layer in model.layers if hasattr(layer.mlp, "gate")]
    counts = {router: torch.zeros(len(router.weight), dtype=torch.long) for router in routers}

    def count(router: Any, _: Any, chosen: Any) -> None:
        counts[router] += chosen[0].flatten().bincount(minlength=len(counts[router]))

    for router in routers:
        router.register_forward_hook(count)
    with torch.no_grad():
        for tokens in texts:
            model(torch.tensor([tokens[:-1]]))
    return [of_layer.tolist() for of_layer in counts.values()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(folder: Path, package: str, alone: str, ranks: int, *scenes: str) -> None:
    sys.path.insert(0, str(folder))
    model = make_checkpoint(alone, folder)
    texts = drawn(import_module(f"{alone}.dims").VOCAB_SIZE)
    results: dict[str, Any] = {"alone": written_alone(alone, model, texts)}
    for scene in scenes:
        arguments = (free_port(), folder, package, scene, texts, ranks)
        mp.start_processes(rank_main, arguments, nprocs=ranks, start_method="fork")
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
        if scene.startswith("logprobs") and not any(isinstance(rank, str) for rank in found):
            beside = partial(farthest, model) if scene == "logprobs" else partial(apart, alone, model, texts)
            found = [beside(of_rank) for of_rank in found]
        results[scene] = found
    if "copied" in scenes:
        whole = [[*prompt, *new] for (prompt, _), new in zip(texts, results["alone"], strict=True)]
        results["loads"] = went_to(model, whole[:7])
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
