"""Wall time of `dsc plan`, a new process each time: DeepSeek-V3 on 2,048 and on 16,384 GPUs, Llama 3.1 405B on 1,024.

python tests/benchmarks/plan_search.py [--rounds N] [--out FILE.jsonl] [--before FILE.jsonl]

With --before, how many times faster each is than the last result of the same plan in that file.
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
    parser.add_argument("--before", type=Path, help="earlier results, to compare with")
    arguments = parser.parse_args()
    before = earlier(arguments.before) if arguments.before else {}
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
        if (spec, nodes) in before:
            result["times_faster"] = round(before[spec, nodes] / float(str(result["seconds"])), 2)
        print(json.dumps(result), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


def earlier(results: Path) -> dict[tuple[str, int], float]:
    """Seconds by spec and nodes; of several results the last."""
    lines = map(json.loads, results.read_text().splitlines())
    return {(line["spec"], line["nodes"]): line["seconds"] for line in lines}


def measured(spec: str, cluster: str, nodes: int, rounds: int) -> dict[str, object]:
    """Median and range of the seconds, and how many layouts were legal."""
    plan = [str(Path(sys.executable).with_name("dsc")), "plan", spec, "--cluster", cluster, "--nodes", str(nodes)]
    seconds, legal, start_of_all = [], 0, os.times().children_user
    for _ in range(rounds):
        start = time.perf_counter()
        run = subprocess.run([*plan, "--json"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        legal = json.loads(run.stdout)["searched"]["legal"]
    extremes = [round(min(seconds), 2), round(max(seconds), 2)]
    of_the_processor = round((os.times().children_user - start_of_all) / rounds, 2)
    return {
        "seconds": round(statistics.median(seconds), 2),
        "range": extremes,
        "user_seconds": of_the_processor,
        "legal": legal,
    }


if __name__ == "__main__":
    main()
