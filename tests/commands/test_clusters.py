"""docs/clusters.md: several machines, played by processes that meet on loopback, and the files that the page hands out.

Slurm, Kubernetes and Docker are not at hand: their commands are stand-ins, their files are read.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastfgssl.config.files import load_config, write_config
from fastfgssl.pretraining import pretrain
from fastfgssl.training.sinks import read_metrics
from helpers.command import Command
from helpers.paths import ROOT, TOOLS
from helpers.runs import losses, trained_change, wait_for_steps

TOOL = TOOLS / "train.py"
FILES = ROOT / "docs" / "clusters"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def elsewhere(variables: dict[str, str]) -> dict[str, str]:
    """The environment of another machine: it inherits nothing of ours that says who it is."""
    inherited = {name: value for name, value in os.environ.items() if not re.match("SLURM|MASTER", name)}
    return inherited | {"OMP_NUM_THREADS": "1"} | variables


def torchrun(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=elsewhere({}))


def finish(hosts: list[subprocess.Popen] | list[Command], code: int) -> list[str]:
    """Waits for all of them; returns what they printed."""
    try:
        printed = [host.communicate(timeout=120) for host in hosts]
    finally:
        for host in hosts:
            host.kill()  # what a failure left waiting for the others
    for host, (_, errors) in zip(hosts, printed, strict=True):
        assert host.returncode == code, errors[-3000:]
    return [out for out, _ in printed]


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_as_one_process_does(make_config, tmp_path):
    settings = {"train__steps": 2, "train__batch_norm": "sync", "optim__lr": 1e-6}
    alone = make_config(output=str(tmp_path / "alone"), **settings)
    pretrain(alone)
    config = dataclasses.replace(alone, output=str(tmp_path / "nodes"))
    write_config(config, tmp_path / "config.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    command = [f"--master-port={port}", TOOL, "--config", tmp_path / "config.yaml"]
    printed = finish([torchrun(*launcher, f"--node-rank={node}", *command) for node in (0, 1)], code=0)
    assert ["done: 2 steps" in out for out in printed] == [True, False]  # one run, of which the first rank speaks
    assert [record["step"] for record in losses(config.output)] == [1, 2]
    assert losses(config.output)[0] == pytest.approx(losses(alone.output)[0], rel=1e-3)
    change, expected = trained_change(config.output), trained_change(alone.output)
    assert (change - expected).norm() < 0.01 * expected.norm()


def srun(arguments: list, **options: Any) -> list[Command]:
    """The tool on two nodes with a task each, as srun starts it in an allocation."""
    job = next(job for job in count(os.getpid()) if is_free(20_000 + 10 * job % 12_000))
    variables = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "localhost,gpu[003-004]",
        "SLURM_LOCALID": "0",
    }
    nodes = [variables | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node)} for node in (0, 1)]
    return [Command(TOOL, *arguments, environment=elsewhere(node), **options) for node in nodes]


def test_tasks_of_srun_train_together_stop_on_a_warning_and_go_on(make_config, tmp_path):
    config = make_config(train__steps=2000, train__heads=[0])
    write_config(config, tmp_path / "config.yaml")
    output = Path(config.output)
    tasks = srun(["--config", tmp_path / "config.yaml"])
    wait_for_steps(output, 2, tasks[0])
    tasks[1].send_signal(signal.SIGUSR1)  # to one of them, and both end as if it had reached them
    printed = finish(tasks, code=128 + signal.SIGUSR1)
    done = read_metrics(output)[-1]["step"]
    assert [f"stopped after step {done} of 2000" in out for out in printed] == [True, False]
    finish(srun(["--config", tmp_path / "config.yaml", f"train.steps={done + 2}"]), code=0)
    assert [record["step"] for record in read_metrics(output)] == list(range(1, done + 3))


def test_ranks_go_on_to_the_end_without_a_reader(make_config, tmp_path):
    """As behind `torchrun ... | head`."""
    config = make_config(train__steps=30, train__heads=[0])
    write_config(config, tmp_path / "config.yaml")
    read, written = os.pipe()
    os.close(read)
    finish(srun(["--config", tmp_path / "config.yaml"], stdout=written), code=0)
    os.close(written)
    assert [record["step"] for record in read_metrics(Path(config.output))] == list(range(1, 31))
    assert (Path(config.output) / "checkpoints" / "step_000000030.pt").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "is_queued"),
    [
        (138, None, True),
        (143, 3, True),
        (138, 200, False),
        (79, 3, True),
        (79, 200, False),
        (75, None, False),
        (0, None, False),
        (2, None, False),
        (1, None, False),
        (137, 1, False),
    ],
)
def test_the_batch_script_queues_a_stopped_run_again(tmp_path, code, restarts, is_queued):
    commands = tmp_path / "bin"
    activate = tmp_path / ".venv" / "bin" / "activate"
    for folder in (commands, activate.parent):
        folder.mkdir(parents=True)
    activate.write_text(f"PATH={shlex.quote(str(commands))}:$PATH\n")
    for name, ends in (("srun", code), ("scontrol", 0)):
        (commands / name).write_text(f'#!/bin/bash\necho "{name} $*" >> calls\nexit {ends}\n')
        (commands / name).chmod(0o755)
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "12", "SLURM_JOB_ID": "4711"}
    if restarts is not None:
        variables["SLURM_RESTART_COUNT"] = str(restarts)
    command = ["bash", str(FILES / "train.sbatch"), "--config", "my config.yaml", "output=runs/first"]
    environment = {"PATH": os.environ["PATH"]} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr == ""
    first, *rest = (tmp_path / "calls").read_text().splitlines()
    assert first.startswith("srun --cpus-per-task=12 ")
    assert first.endswith(" python tools/train.py --config my config.yaml output=runs/first")
    assert rest == (["scontrol requeue 4711"] if is_queued else [])


def test_the_batch_script_is_one():
    subprocess.run(["bash", "-n", str(FILES / "train.sbatch")], check=True)
    lines = (FILES / "train.sbatch").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [index for index, line in enumerate(lines) if line.startswith("#SBATCH")]
    # Slurm reads options up to the first command, and a requeued job appends to its log
    assert all(not line or line.startswith("#") for line in lines[: options[-1]])
    assert {"#SBATCH --signal=USR1@180", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(lines)


def test_the_jobset_runs_the_trainer():
    jobset = yaml.safe_load((FILES / "jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    shell, option, script = container["command"]
    assert (shell, option) == ("bash", "-c")
    words = shlex.split(script)
    assert words[:2] == ["exec", "torchrun"]  # else the shell keeps the SIGTERM to itself
    options = dict(word[2:].split("=", 1) for word in words if re.match("--[a-z-]+=", word))
    assert int(options["nnodes"]) == job["completions"] == job["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name = jobset["metadata"]["name"]
    assert options["master-addr"] == f"{name}-{replicated['name']}-0-0.{name}"
    arguments = words[words.index("tools/train.py") + 1 :]
    config = load_config(ROOT / arguments[1], arguments[2:])
    assert config.data.threads * int(options["nproc-per-node"]) == int(container["resources"]["requests"]["cpu"])
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/data", "/dev/shm"} == mounted
    assert all(path.startswith("/data/") for path in (config.data.path, config.output))
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_the_image_has_all_that_it_runs():
    text = (FILES / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert {"setup.py", "pyproject.toml", "constraints.txt", "fastfgssl", "kernels", "configs", "tools"} <= copied
    assert all((ROOT / path).exists() for path in copied)
    statement = re.search(r'RUN python -c "(.*?)"', text)[1]
    subprocess.run([sys.executable, "-c", statement.partition("; ")[0]], check=True)
    read = (ROOT / "kernels" / "build.py").read_text()
    assert all(name in read for name in re.findall(r"FASTFGSSL_\w+", text))
