"""run.sh and run.slurm: what they start is what the plan says, and it trains."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

BIN = Path(__file__).parents[2] / ".venv" / "bin"


def shell(script: Path, *arguments: str, path: Path = BIN, **variables: str) -> subprocess.Popen[str]:
    """A script begun, with the programs of a folder before all others."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "NODE_RANK")}
    environment |= {"PATH": f"{path}:{environment['PATH']}", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=script.parents[1],
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Its output. Of torchrun on several machines one may miss that the others have ended, and wait 300 seconds."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, err[-4000:]
    return err if code else out


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def two(placed_spec: Any, package_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for two processes, one on each of two machines; its folder has another name than the spec's."""
    folder = tmp_path_factory.mktemp("two")
    (folder / package_of(placed_spec("llama", {"dp": 2}), folder)).rename(folder / "renamed")
    (folder / "text.txt").write_text("What is said once is said twice, and what is said twice is said. " * 60)
    return folder / "renamed"


TRAIN = ("--data", "text.txt", "--steps", "2", "--metrics")


def losses(folder: Path, name: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def near(two: Path) -> list[float]:
    """Of a run with all ranks on this machine; paths of the command line are seen from where it is given."""
    ended(shell(two / "run.sh", *TRAIN, "near.jsonl", NODES="1", MASTER_PORT=free_port()))
    return losses(two.parent, "near.jsonl")


def test_it_trains_on_this_machine(near: list[float]) -> None:
    assert len(near) == 2 and near[1] < near[0]


@pytest.mark.slow
def test_it_trains_on_two_machines(two: Path, near: list[float]) -> None:
    """The same losses, for they are the same ranks."""
    port = free_port()
    machines = [shell(two / "run.sh", *TRAIN, "far.jsonl", MASTER_ADDR="localhost", MASTER_PORT=port) for _ in range(2)]
    for machine in machines:
        ended(machine)
    assert losses(two.parent, "far.jsonl") == near


def test_without_the_name_of_a_machine_it_says_what_is_missing(two: Path) -> None:
    assert "MASTER_ADDR: set it to the name of one of the 2 machines" in ended(shell(two / "run.sh"), code=1)


def stand_ins(folder: Path) -> Path:
    """Programs that say what they were called with: torchrun; srun, which runs it on this machine."""
    folder.mkdir()
    for name, text in {
        "torchrun": 'echo "torchrun $*"; echo "at $PYTHONPATH"',
        "srun": 'while [[ $1 == --* ]]; do shift; done; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        # More names than a pipe holds: whoever stops reading after the first would end it with SIGPIPE.
        "scontrol": '[ "$*" = "show hostnames node[7-8]" ] && echo node7 && seq --format node%g 8 20000',
    }.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def twelve(placed_spec: Any, package_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for twelve GPUs of machines that have eight."""
    spec = placed_spec("mixtral", {"pp": 2, "dp": 6})
    spec |= {"cluster": {"kind": "h100", "gpus": 12}, "workload": {"sequence_length": 32, "global_batch": 24}}
    folder = tmp_path_factory.mktemp("twelve")
    return folder / package_of(spec, folder)


def test_under_slurm_every_machine_starts_its_processes(twelve: Path, tmp_path: Path) -> None:
    """From a copy, as Slurm runs it; the last machine has fewer processes."""
    copy = twelve.parent / "spool" / "slurm_script"
    copy.parent.mkdir()
    copy.write_text((twelve / "run.slurm").read_text())
    variables = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42"}
    out = ended(shell(copy, "--data", "a b", path=stand_ins(tmp_path / "bin"), **variables))
    called = [line for line in out.splitlines() if line.startswith("torchrun")]
    assert [re.findall(r"--nproc-per-node (\d+)", line) for line in called] == [["8"], ["4"]]
    for line in called:
        assert "--nnodes 2 " in line and "--rdzv-endpoint node7:29500" in line and "--rdzv-id 42 " in line
        assert line.endswith("-m small_mixtral.train.train --data a b")
    assert f"at {twelve.parent}" in out


def test_plan_scripts_and_constants_agree(twelve: Path, two: Path) -> None:
    for package, nodes, world, batch in ((twelve, 2, 12, 24), (two, 2, 2, 16)):
        plan = YAML(typ="safe", pure=True).load(package / "plan.yaml")
        assert (plan["nodes"], plan["world_size"], plan["global_batch"]) == (nodes, world, batch)
        constants = (package / "train" / "plan.py").read_text()
        assert f"WORLD = {world} " in constants and f"BATCH_SIZE = {batch} " in constants
        assert f"DP = {plan['placement']['dp']} " in constants
        assert f"BYTES = {max(role['total'] for role in plan['memory'])} " in constants
        assert f"processes={world}\n" in (package / "run.sh").read_text()
        slurm = (package / "run.slurm").read_text()
        assert f"#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node=1\n" in slurm
        assert ("#SBATCH --gpus-per-node=8\n" in slurm) == (package == twelve)


def test_on_one_machine_nothing_has_to_be_named(placed_spec: Any, package_of: Any, tmp_path: Path) -> None:
    spec = placed_spec("llama", {"dp": 4}) | {"cluster": {"kind": "h100", "gpus": 4}}
    package = tmp_path / package_of(spec, tmp_path)
    assert not (package / "run.slurm").exists()
    out = ended(shell(package / "run.sh", "--steps", "1", path=stand_ins(tmp_path / "bin")))
    assert out.startswith("torchrun --standalone --nproc-per-node 4 -m small_llama.train.train --steps 1\n")


def test_scripts_hold_what_their_machines_need(twelve: Path, two: Path) -> None:
    """Allocator and NCCL on GPUs, threads and gloo on CPUs, and no line for the other."""
    gpu, cpu = ((package / "run.sh").read_text() for package in (twelve, two))
    assert "PYTORCH_ALLOC_CONF" in gpu and "NCCL_SOCKET_IFNAME" in gpu and "OMP" not in gpu and "GLOO" not in gpu
    assert "OMP_WAIT_POLICY" in cpu and "GLOO_SOCKET_IFNAME" in cpu and "CUDA" not in cpu and "NCCL" not in cpu
    for text in (gpu, cpu):
        assert all(len(line) <= 120 for line in text.splitlines()) and "\n\n\n" not in text


def test_one_process_has_a_plan_and_nothing_to_start_it(placed_spec: Any, package_of: Any, tmp_path: Path) -> None:
    package = tmp_path / package_of(placed_spec("llama", {"recompute": ["swiglu"]}), tmp_path)
    assert "recompute: [swiglu]" in (package / "plan.yaml").read_text()
    assert not (package / "run.sh").exists() and not (package / "run.slurm").exists()
