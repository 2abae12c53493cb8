"""Generation by an emitted package's engine against transformers' generate, side by side in one process.

    python tests/benchmarks/serving.py [--rounds N] [--new-tokens N] [--batches 1 4 32] [--no-mixed] [--compile]
        [--bfloat16] [--llama-cpp] [--out FILE.jsonl]

Both with the same weights on one thread. The clock is the process's own time, so that a busy machine does not count. A
step is the difference of two lengths divided by the steps between: prompts and start cancel, but not what it takes the
engine to lay its weights out for many texts, and back. `floor_ms` is the time that reading the weights of a step takes
at the rate at which this machine reads memory, measured in the same run; of the routed experts, those that the tokens
of the step chose on average.

`--llama-cpp` adds llama.cpp with the same weights in float32, which is not among what dsc requires: pip install gguf
llama-cpp-python, which compiles it for this machine. It keeps a cache for each sequence, or, as `unified`, one for all
of them; which is faster depends on the batch. `llama_cpp` of a record says how far its logits are from the emitted
model's after a prompt, and how many greedy tokens of how many are other ones.
"""

import argparse
import importlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.hf import export_config
from dsc.spec.loader import loads

SPEC = """
name: toy
vocab_size: 4096
hidden_size: 512
max_position_embeddings: 2048
norm: {eps: 1.0e-6}
attention:
  kind: mla
  num_attention_heads: 8
  q_lora_rank: 192
  kv_lora_rank: 128
  qk_nope_head_dim: 64
  qk_rope_head_dim: 32
  v_head_dim: 64
  rope: {layout: interleaved, theta: 10000.0}
ffn:
  dense: {intermediate_size: 1024}
  moe:
    n_routed_experts: 16
    num_experts_per_tok: 4
    moe_intermediate_size: 256
    n_shared_experts: 1
    router: {score: sigmoid, selection_bias: true, n_group: 4, topk_group: 2, group_score: top2_sum,
             norm_topk_prob: true, routed_scaling_factor: 2.5}
layers:
  - {repeat: 1, ffn: dense}
  - {repeat: 5, ffn: moe}
precision: {parameters: fp32, kv_cache: fp32}
workload: {sequence_length: 256}
"""
PROMPT = 16
Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]


def contenders(folder: Path, dtype: torch.dtype, compiled: bool = False) -> tuple[Any, dict[str, Generate]]:
    """The emitted model, and what generates greedily from its weights and from transformers' copy of them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = loads(SPEC, "benchmark.yaml")
    write(emit(build(spec)), folder / spec.package_name)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**export_config(spec))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().to(dtype)
    theirs.save_pretrained(folder / "weights")
    sys.path.insert(0, str(folder))
    model = importlib.import_module("toy.model").Model().to(dtype)
    importlib.import_module("toy.checkpoint").load_hf(model, folder / "weights")
    engine = importlib.import_module("toy.infer.engine").Engine

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        """Prompts of different lengths are padded on the left, as transformers wants them."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "eos_token_id": None}
        with torch.no_grad():
            made = theirs.generate(ids, attention_mask=mask, pad_token_id=0, **options)
        rows: list[list[int]] = made[:, longest:].tolist()
        return rows

    found: dict[str, Generate] = {"engine": engine(model).generate, "transformers": generate}
    return model, found | ({"compiled": engine(model, compile=True).generate} if compiled else {})


def llama_cpp(folder: Path, positions: int) -> dict[str, Any]:
    """With the weights that `contenders` left in the folder. Ends the run where it is not installed."""
    try:
        from gguf_of_toy import write_gguf
        from llama_contender import LlamaCpp
    except ImportError as error:
        sys.exit(f"--llama-cpp needs {error.name}: pip install gguf llama-cpp-python")
    write_gguf(folder / "weights", folder / "toy.gguf")
    caches = {"llama.cpp": False, "llama.cpp unified": True}
    return {name: LlamaCpp(folder / "toy.gguf", positions, unified) for name, unified in caches.items()}


def apart(llama: Any, model: Any, prompts: Prompts, texts: list[list[int]]) -> dict[str, float]:
    """How far llama.cpp is from the emitted model and its texts."""
    with torch.no_grad():
        ours = model(torch.tensor(prompts))[:, -1]
    logits = (torch.from_numpy(llama.first_logits(prompts)) - ours).abs().max().item()
    assert logits < 1e-4, f"llama.cpp computes something else: its logits differ by {logits}"
    theirs = llama.generate(prompts, len(texts[0]))
    other = [one != two for pair in zip(theirs, texts, strict=True) for one, two in zip(*pair, strict=True)]
    return {"logits_apart": logits, "tokens_apart": sum(other), "tokens": len(other)}


def random_prompts(lengths: list[int], seed: int = 0) -> Prompts:
    source = random.Random(seed)
    return [[source.randrange(4096) for _ in range(length)] for length in lengths]


def milliseconds(generate: Generate, prompts: Prompts, new: int) -> float:
    """Of a step."""
    times = []
    for count in (2, 2 + new):
        start = time.process_time()
        generate(prompts, count)
        times.append(time.process_time() - start)
    return (times[1] - times[0]) / new * 1e3


def steps(generators: dict[str, Generate], batch: int, new: int, rounds: int) -> dict[str, float]:
    """The best of some rounds, all contenders in each."""
    prompts = random_prompts([PROMPT] * batch)
    found: dict[str, list[float]] = {name: [] for name in generators}
    for generate in generators.values():
        generate(prompts, 2)  # what is compiled is compiled here
    for _ in range(rounds):
        for name, generate in generators.items():
            found[name].append(milliseconds(generate, prompts, new))
    return {name: min(values) for name, values in found.items()}


def mixed(generators: dict[str, Generate]) -> dict[str, float]:
    """Tokens per second of 32 requests of 4 to 128 tokens of prompt with 4 to 128 new ones, in processor time.

    transformers gets them in one padded batch that runs to the longest.
    """
    source = random.Random(1)
    prompts = random_prompts([source.randint(4, 128) for _ in range(32)])
    wanted = [source.randint(4, 128) for _ in range(32)]
    engine = sys.modules["toy.infer.engine"]
    sampling = sys.modules["toy.infer.sampling"].Sampling
    running = generators["engine"].__self__  # type: ignore[attr-defined]
    rates = {}
    start = time.process_time()
    texts = [running.submit(prompt, sampling(new)) for prompt, new in zip(prompts, wanted, strict=True)]
    while not running.scheduler.idle:
        running.step()
    rates["engine"] = sum(wanted) / (time.process_time() - start)
    start = time.process_time()
    rows = generators["transformers"](prompts, max(wanted))
    rates["transformers"] = sum(wanted) / (time.process_time() - start)
    same = sum(row[: len(text.new_tokens)] == text.new_tokens for row, text in zip(rows, texts, strict=True))
    assert engine and same >= 0.9 * len(rows), f"only {same} of {len(rows)} texts are the same"
    return rates


def floor_ms(model: Any, batch: int) -> float:
    """Bytes of weights of a step over this machine's rate of reading."""
    memory = torch.randn(2**25)
    rate = max(_rate(memory) for _ in range(5))
    chosen = 1 - (1 - 4 / 16) ** batch  # of the experts, by tokens that choose alike and apart from each other
    size = 0.0
    for name, parameter in model.named_parameters():
        if "embed" not in name:
            size += parameter.nbytes * (chosen if parameter.dim() == 3 else 1)
    return size / rate * 1e3


def _rate(memory: torch.Tensor) -> float:
    start = time.process_time()
    memory.sum()
    return memory.nbytes / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 32])
    parser.add_argument("--no-mixed", action="store_true")
    parser.add_argument(
        "--compile", action="store_true", help="Engine(compile=True) beside the others; batches up to 8"
    )
    parser.add_argument("--bfloat16", action="store_true", help="in place of float32; texts are not compared")
    parser.add_argument("--llama-cpp", action="store_true", help="llama.cpp beside the others, in float32")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.llama_cpp and arguments.bfloat16:
        parser.error("--llama-cpp is compared in float32, not with --bfloat16")
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)  # of the machine, before this begins: it slows even processor time
    machine: dict[str, object] = {"torch": torch.__version__, "machine": platform.machine()}
    machine |= {"clock": "process", "threads": 1, "dtype": "bfloat16" if arguments.bfloat16 else "float32"}
    machine |= {"cpu": torch.backends.cpu.get_cpu_capability(), "load": load}
    with tempfile.TemporaryDirectory() as name:
        dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
        model, generators = contenders(Path(name), dtype, arguments.compile)
        prompts = random_prompts([PROMPT] * 4, seed=3)
        texts = [generate(prompts, 40) for generate in generators.values()]
        assert arguments.bfloat16 or all(text == texts[0] for text in texts), "the contenders write different texts"
        if arguments.llama_cpp:
            llamas = llama_cpp(Path(name), positions=PROMPT + max(arguments.new_tokens + 2, 40))
            machine["llama_cpp"] = [llama.record | apart(llama, model, prompts, texts[0]) for llama in llamas.values()]
            generators |= {contender: llama.generate for contender, llama in llamas.items()}
        records: list[dict[str, object]] = []
        for batch in arguments.batches:
            found = steps(generators, batch, arguments.new_tokens, arguments.rounds)
            times = {name: found["transformers"] / ms for name, ms in found.items() if name != "transformers"}
            records.append({"batch": batch, "ms_per_step": found, "times": times, "floor_ms": floor_ms(model, batch)})
            print(json.dumps(records[-1]), flush=True)
        if not arguments.no_mixed:
            rates = mixed(generators)
            records.append({"mixed_tokens_per_second": rates, "times": rates["engine"] / rates["transformers"]})
            print(json.dumps(records[-1]), flush=True)
    if arguments.out is not None:
        with arguments.out.open("a") as file:
            for record in records:
                file.write(json.dumps({"benchmark": "serving", **record, **machine}) + "\n")


if __name__ == "__main__":
    main()
