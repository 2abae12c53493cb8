"""From a checkpoint to an engine: seconds, and the most memory that the process had of its own and mapped from files.

python tests/benchmarks/loading.py [--layers N] [--out FILE.jsonl]

A dense model of as many layers as asked for, 63 MB each in float32. What is mapped from files is the page cache of the
system, shared by all processes that read the files, and given up for anything else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SAVE = """
import torch
from loaded.checkpoint import save_hf
from loaded.model import Model
save_hf(Model(), "checkpoint")
"""
LOAD = """
import json, os, resource, threading, time
from pathlib import Path
import torch
from loaded.infer.generate import load_engine

def mapped(kind):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024

kinds, done = ("RssAnon", "RssFile"), threading.Event()
most, before = dict.fromkeys(kinds, 0), {kind: mapped(kind) for kind in kinds}
def watch():
    while not done.wait(0.005):
        for kind in most:
            most[kind] = max(most[kind], mapped(kind) - before[kind])
thread = threading.Thread(target=watch)
thread.start()
started, processor = time.perf_counter(), time.process_time()
engine = load_engine(Path("checkpoint"))
seconds = time.perf_counter() - started, time.process_time() - processor
done.set(); thread.join()
cache = sum(pages.nbytes for pages in engine.caches)
times = dict(zip(("seconds", "processor"), (round(value, 2) for value in seconds)))
print(json.dumps(times | {"own": most["RssAnon"], "of_files": most["RssFile"], "cache": cache}))
"""


def spec(layers: int) -> ModelSpec:
    data = load("llama-3.1-8b").model_dump() | {
        "name": "loaded",
        "cluster": None,
        "vocab_size": 4096,
        "hidden_size": 1024,
    }
    data["attention"] |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    data["ffn"]["dense"]["intermediate_size"] = 3776
    data |= {"layers": [{"repeat": layers, "ffn": "dense"}], "max_position_embeddings": 1024}
    return ModelSpec.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(emit(build(spec(arguments.layers))), Path(folder, "loaded"))
        subprocess.run([sys.executable, "-c", SAVE], check=True, cwd=folder)
        size = sum(path.stat().st_size for path in Path(folder, "checkpoint").glob("*.safetensors"))
        told = subprocess.run(
            [sys.executable, "-c", LOAD], check=True, cwd=folder, capture_output=True, text=True
        ).stdout
    result = {"benchmark": "loading", "checkpoint": size, **json.loads(told.splitlines()[-1])}
    print(json.dumps(result))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
