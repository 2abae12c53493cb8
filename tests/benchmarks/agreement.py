"""How far engine and trainer agree in the probabilities of an answer's tokens, in float32 and in bfloat16.

python tests/benchmarks/agreement.py [--answers N] [--out FILE.jsonl]

The zoo's tiny-r1 with weights that spread answers and experts, by its own engine and its own training forward, as in
a step of train/grpo.py. `mismatch` is the mean over tokens of r - log r - 1, r the ratio of both probabilities;
`routers_differing` the share of routers that would have chosen other experts, were the engine's not replayed.
"""

import argparse
import importlib
import json
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

LONGEST = 64  # tokens of an answer
STD = 0.08  # of the weights: an answer's tokens then have log-probabilities from -1 to -10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--out", type=Path, help="append a line of JSON for each type")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = load("tiny-r1").model_dump()
        data["rl"]["max_new_tokens"] = LONGEST
        write(emit(build(ModelSpec.model_validate(data))), Path(folder) / "tiny_r1")
        sys.path.insert(0, folder)
        for dtype in (torch.float32, torch.bfloat16):
            found = {
                "benchmark": "agreement",
                "dtype": str(dtype).removeprefix("torch."),
                **measured(dtype, arguments.answers),
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
            print(json.dumps(found), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")


@torch.no_grad()
def measured(dtype: torch.dtype, number: int) -> dict[str, float]:
    """Of some answers: engine against trainer, token by token."""

    def package(module: str) -> Any:
        return importlib.import_module(f"tiny_r1.{module}")

    torch.manual_seed(1)
    model = package("model").Model().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=STD)
    model.to(dtype)
    draw = random.Random(0)
    prompts = [[draw.randrange(256) for _ in range(draw.randint(4, 32))] for _ in range(number)]
    answers = package("train.rollout").rollout(model, prompts, frozenset({256}), seed=0)
    replay = package("train.replay").Replay(answers.experts)
    trained = package("train.policy").model_log_probabilities(model, answers.tokens, answers.labels, replay)
    said = answers.labels != -100
    log_ratio = (trained.double() - answers.sampled.double())[said]
    routers = answers.experts.shape[1]
    return {
        "tokens": int(said.sum()),
        "mismatch": (log_ratio.expm1() - log_ratio).mean().item(),
        "largest": log_ratio.abs().max().item(),
        "mean": log_ratio.abs().mean().item(),
        "routers_differing": (replay.differing[said].sum() / (said.sum() * routers)).item(),
    }


if __name__ == "__main__":
    main()
