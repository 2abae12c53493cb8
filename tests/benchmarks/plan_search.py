"""Wall time of `dsc plan`, a new process each time: DeepSeek-V3 on 2,048 and on 16,384 GPUs, Llama 3.1 405B on 1,024.

python tests/benchmarks/plan_search.py [--rounds N] [--out FILE.jsonl]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PLANS = (("deepseek-v3", "h800", 256), ("deepseek-v3", "h800", 2048), ("llama-3.1-405b", "h100", 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the results as lines of JSON")
    arguments = parser.parse_args()
    for spec, cluster, nodes in PLANS:
        result = {
            "benchmark": "plan_search",
            "spec": spec,
            "cluster": cluster,
            "nodes": nodes,
            **measured(spec, cluster, nodes, arguments.rounds),
            "rounds": arguments.rounds,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "date": datetime.date.today().isoformat(),
        }
        print(json.dumps(result), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


def measured(spec: str, cluster: str, nodes: int, rounds: int) -> dict[str, object]:
    """Median and range of the seconds, and how many layouts were legal."""
    plan = [str(Path(sys.executable).with_name("dsc")), "plan", spec, "--cluster", cluster, "--nodes", str(nodes)]
    seconds, legal = [], 0
    for _ in range(rounds):
        start = time.perf_counter()
        run = subprocess.run([*plan, "--json"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        legal = json.loads(run.stdout)["searched"]["legal"]
    extremes = [round(min(seconds), 2), round(max(seconds), 2)]
    return {"seconds": round(statistics.median(seconds), 2), "range": extremes, "legal": legal}


if __name__ == "__main__":
    main()
