"""One training step of the emitted model against transformers', or of its trainer, side by side in one process.

    python tests/benchmarks/train_step.py --size large|small [--rounds N] [--threads N] [--trainer | --compile]

Both are eager, in float32, start from the same weights (written by transformers' save_pretrained and read by the
emitted load_hf) and do the same: forward, cross-entropy, backward, fused AdamW. transformers runs with sdpa attention
and its grouped_mm experts. The balance and multi-token losses that transformers lacks are left out of the spec.
Rounds alternate which model goes first; the figure is the median over rounds of transformers' time / ours.

--trainer compares train/train.py instead, a step of Run.loop with its data, log and guards, with a bare loop over the
same model: the same loss of one batch, backward, clipping, the same optimizer, no determinism asked for.

--compile runs four steps beside each other: both as above, the emitted model compiled as the trainer's --compile has it
(train/compiled.py), and transformers' under torch.compile; both whole.
"""

import argparse
import copy
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.hf import export_config
from dsc.spec.loader import loads

SPEC = """
name: benchmark-{size}
vocab_size: {vocab}
hidden_size: {hidden}
max_position_embeddings: 4096
norm: {{eps: 1.0e-6}}
attention:
  kind: mla
  num_attention_heads: {heads}
  q_lora_rank: {q_rank}
  kv_lora_rank: {kv_rank}
  qk_nope_head_dim: {nope}
  qk_rope_head_dim: {rope}
  v_head_dim: {nope}
  rope: {{layout: interleaved, theta: 10000.0}}
ffn:
  dense: {{intermediate_size: {dense}}}
  moe:
    n_routed_experts: 16
    num_experts_per_tok: 4
    moe_intermediate_size: {expert}
    n_shared_experts: 1
    router:
      score: sigmoid
      selection_bias: true
      n_group: 4
      topk_group: 2
      group_score: top2_sum
      norm_topk_prob: true
      routed_scaling_factor: 2.5
layers:
  - {{repeat: 1, ffn: dense}}
  - {{repeat: 5, ffn: moe}}
precision: {{parameters: fp32, kv_cache: fp32}}
"""

LARGE = {"vocab": 4096, "hidden": 512, "heads": 8, "q_rank": 192, "kv_rank": 128, "nope": 64, "rope": 32}
SMALL = {"vocab": 1024, "hidden": 128, "heads": 4, "q_rank": 48, "kv_rank": 32, "nope": 32, "rope": 16}
SIZES = {
    "large": ({**LARGE, "dense": 1024, "expert": 256}, (4, 256)),
    "small": ({**SMALL, "dense": 256, "expert": 64}, (1, 64)),
}

Step = Callable[[], Tensor]


def models(size: str, folder: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The emitted model and transformers', with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = loads(SPEC.format(size=size, **SIZES[size][0]), "benchmark.yaml")
    write(emit(build(spec)), folder / spec.package_name)
    config = AutoConfig.for_model(**export_config(spec))
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", experts_implementation="grouped_mm")
    theirs.save_pretrained(folder / "weights")
    sys.path.insert(0, str(folder))
    ours = importlib.import_module(f"{spec.package_name}.model").Model()
    importlib.import_module(f"{spec.package_name}.checkpoint").load_hf(ours, folder / "weights")
    return ours.train(), theirs.train()


def step(model: torch.nn.Module, tokens: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> Tensor:
        output = model(tokens)
        logits = getattr(output, "logits", output)  # transformers returns more
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def trainer(size: str, folder: Path) -> tuple[Step, Step]:
    """A step of the package's trainer, and of a bare loop over a model of its own."""
    spec = loads(SPEC.format(size=size, **SIZES[size][0]), "benchmark.yaml")
    (batch, length), package = SIZES[size][1], spec.package_name
    write(emit(build(spec)), folder / package)
    sys.path.insert(0, str(folder))
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, SIZES[size][0]["vocab"], 200_000, np.uint16))
    module, logs, stops = (importlib.import_module(f"{package}.train.{name}") for name in ("train", "log", "stop"))
    flags = f"--data {folder}/tokens.npy --steps 1 --metrics {folder}/m.jsonl --batch-size {batch} --learning-rate 1e-4"
    given, sys.argv = sys.argv, ["train", *flags.split(), "--sequence-length", str(length), "--dtype", "float32"]
    run = module.Run(module.parse_arguments())
    sys.argv = given
    stop, log = stops.Stop(), logs.Log(run.args.metrics, 0, 1 << 20, None)
    stop.asked = False

    def trained() -> Tensor:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert run.loop(stop, log, lambda: None) == ""
        torch.use_deterministic_algorithms(False)
        run.start, run.args.steps = run.args.steps, run.args.steps + 1
        return torch.zeros(())

    model = importlib.import_module(f"{package}.model").Model()
    optimizer = importlib.import_module(f"{package}.train.optimizer").make_optimizer(model.named_parameters(), 0.1)
    tokens, labels = run.batches.batch(0, slice(0, batch))

    def bare() -> Tensor:
        loss, _ = model.loss(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return trained, bare


def measure(runs: dict[str, Step], rounds: int, clock: Callable[[], float]) -> list[dict[str, float]]:
    """Seconds of each, by round; every other round in the opposite order."""
    measured = []
    for index in range(rounds):
        seconds = {}
        for name in list(runs)[:: -1 if index % 2 else 1]:
            start = clock()
            runs[name]()
            seconds[name] = clock() - start
        measured.append(seconds)
    return measured


def compiled(model: torch.nn.Module, ours: bool) -> torch.nn.Module:
    """A copy with the same weights, compiled as the package does it or as one does it by hand."""
    model = copy.deepcopy(model)
    if not ours:
        return torch.compile(model)  # type: ignore[return-value]
    package = type(model).__module__.removesuffix(".model")
    importlib.import_module(f"{package}.train.compiled").compile_model(model, torch.device("cpu"))
    return model


def profile(name: str, run: Step) -> None:
    with torch.profiler.profile() as recorded:
        run()
    print(f"\n{name}\n{recorded.key_averages().table('self_cpu_time_total', row_limit=18, max_name_column_width=40)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="process time instead of wall time, for a busy machine")
    parser.add_argument("--trainer", action="store_true", help="the trainer against a bare loop over the same model")
    parser.add_argument("--compile", action="store_true", help="both models compiled too")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        if arguments.trainer:
            run, bare = trainer(arguments.size, Path(folder))
            report(arguments, {"trainer": run, "bare_loop": bare}, [("bare_loop", "trainer")])
            return
        our_model, their_model = models(arguments.size, Path(folder))
        kinds = {"ours": our_model, "transformers": their_model}
        pairs = [("transformers", "ours")]
        if arguments.compile:
            kinds |= {f"{name}_compiled": compiled(model, name == "ours") for name, model in kinds.items()}
            pairs += [(name, "ours_compiled") for name in ("transformers_compiled", "transformers", "ours")]
            pairs.append(("transformers", "transformers_compiled"))
        tokens = torch.randint(SIZES[arguments.size][0]["vocab"], SIZES[arguments.size][1])
        runs = {name: step(model, tokens, tokens.roll(-1, 1)) for name, model in kinds.items()}
        first = {name: run().item() for name, run in runs.items()}
        assert max(first.values()) - min(first.values()) < 1e-5 * first["ours"], f"the models differ: {first}"
        report(arguments, runs, pairs)


def report(arguments: argparse.Namespace, runs: dict[str, Step], pairs: list[tuple[str, str]]) -> None:
    """`pairs`: whose times are divided, the one that is first by the other."""
    measure(runs, 5, time.perf_counter)
    measured = measure(runs, arguments.rounds, time.process_time if arguments.cpu_time else time.perf_counter)
    result: dict[str, Any] = {"benchmark": "train_step", "size": arguments.size}
    for one, other in pairs:
        low, median, high = statistics.quantiles([seconds[one] / seconds[other] for seconds in measured], n=4)
        result[f"{one}_over_{other}"] = round(median, 3)
        result["quartiles" if len(pairs) == 1 else f"quartiles_{one}_over_{other}"] = [round(low, 3), round(high, 3)]
    result |= {
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "clock": "process" if arguments.cpu_time else "wall",
        "torch": torch.__version__,
        "transformers": importlib.import_module("transformers").__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    if arguments.profile:
        for name, run in runs.items():
            profile(name, run)


if __name__ == "__main__":
    main()
