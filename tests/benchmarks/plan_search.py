"""Wall time of `dsc plan`, a new process each time: DeepSeek-V3 on 2,048 and on 16,384 GPUs, Llama 3.1 405B on 1,024.

python tests/benchmarks/plan_search.py [--rounds N] [--out FILE.jsonl] [--before FILE.jsonl] [--against DSC]

With --before, how many times faster each is than the last result of the same plan in that file. With --against, another
commit's `dsc` takes turns with this one, and seconds of the processor are compared, of which a busy machine takes more
of both. `load` is the machine's at the end. Modules are compiled before, as pip does it.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLANS = (("deepseek-v3", "h800", 256), ("deepseek-v3", "h800", 2048), ("llama-3.1-405b", "h100", 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the results as lines of JSON")
    parser.add_argument("--before", type=Path, help="earlier results, to compare with")
    parser.add_argument("--against", type=Path, help="another commit's dsc, to take turns with")
    arguments = parser.parse_args()
    before = earlier(arguments.before) if arguments.before else {}
    for spec, cluster, nodes in PLANS:
        result = {
            "benchmark": "plan_search",
            "spec": spec,
            "cluster": cluster,
            "nodes": nodes,
            **measured(spec, cluster, nodes, arguments.rounds, arguments.against),
            "rounds": arguments.rounds,
            "load": round(os.getloadavg()[0], 1),
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


def measured(spec: str, cluster: str, nodes: int, rounds: int, against: Path | None) -> dict[str, object]:
    """Medians and range of the seconds, and how many layouts were legal."""
    plan = ["plan", spec, "--cluster", cluster, "--nodes", str(nodes), "--json"]
    ours = Path(sys.executable).with_name("dsc")
    runs: dict[Path, list[tuple[float, float]]] = {dsc: [] for dsc in (ours, against) if dsc is not None}
    legal = 0
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        for dsc in runs:
            subprocess.run([str(dsc), *plan], capture_output=True, check=False, env=environment)
        for _ in range(rounds):
            for dsc, taken in runs.items():
                start, begun = time.perf_counter(), os.times().children_user
                run = subprocess.run([str(dsc), *plan], capture_output=True, check=False, env=environment)
                taken.append((time.perf_counter() - start, os.times().children_user - begun))
                if dsc is ours:
                    legal = json.loads(run.stdout)["searched"]["legal"]
    wall, user = zip(*runs[ours], strict=True)
    result: dict[str, object] = {
        "seconds": round(statistics.median(wall), 2),
        "range": [round(min(wall), 2), round(max(wall), 2)],
        "user_seconds": round(statistics.median(user), 2),
        "legal": legal,
    }
    if against is not None:
        theirs = statistics.median(user for _, user in runs[against])
        result |= {"user_seconds_of_the_other": round(theirs, 2)}
        result |= {"times_less_of_the_processor": round(theirs / statistics.median(user), 2)}
    return result


if __name__ == "__main__":
    main()
