"""What stands in for gcloud, kubectl, srun, scontrol, nvidia-smi, uv, pip and hostname, by the name that it goes by.

Each refuses arguments that the real one does not know (gcloud's and kubectl's are those of their --help), writes down
what it was called with, a line of JSON a call, and does as much as the scripts in launch/ need to go on. Its state is
in STAND_IN_DIRECTORY: `calls`; `state` of the TPU VM; `states` of the queued resource that are still to come; `lost`
if ssh gets no answer; and a home directory for each worker. With STAND_IN_IDLES gcloud only looks at its arguments.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

DIRECTORY = Path(os.environ.get("STAND_IN_DIRECTORY", ""))
WORKERS = 2


def parser(name: str, flags: str, *, values: str = "", positional: str = "", many: str = "") -> argparse.ArgumentParser:
    """One that knows these flags, those with values, and positional arguments, and no others."""
    made = argparse.ArgumentParser(name, allow_abbrev=False, add_help=False)
    for flag in flags.split():
        made.add_argument(flag, action="store_true")
    for flag in values.split():
        made.add_argument(flag)
    for word in positional.split():
        made.add_argument(word)
    if many:
        made.add_argument(many, nargs="+")
    return made


CREATE = "--accelerator-type --zone --project"
GCLOUD = {
    "tpu-vm describe": ("", "--zone --project --format", "name", ""),
    "tpu-vm create": ("--spot --reserved", f"{CREATE} --version", "name", ""),
    "tpu-vm delete": ("--quiet", "--zone --project", "name", ""),
    "tpu-vm ssh": ("", "--zone --project --worker --command", "name", ""),
    "tpu-vm scp": ("--recurse", "--zone --project --worker", "", "paths"),
    "queued-resources create": (
        "--spot --reserved",
        f"{CREATE} --runtime-version --node-id --valid-until-duration",
        "name",
        "",
    ),
    "queued-resources describe": ("", "--zone --project --format", "name", ""),
    "queued-resources delete": ("--force --quiet", "--zone --project", "name", ""),
}
STATE = DIRECTORY / "state"


def gcloud(arguments: list[str]) -> int:
    assert arguments[:2] == ["compute", "tpus"], arguments
    action = " ".join(arguments[2:4])
    flags, values, positional, many = GCLOUD[action]
    got = parser(action, flags, values=values, positional=positional, many=many).parse_args(arguments[4:])
    assert got.zone and got.project
    if "STAND_IN_IDLES" in os.environ:
        return 0
    return globals()[action.replace("-", "_").replace(" ", "_")](got)


def tpu_vm_describe(got) -> int:
    assert got.format == "value(state)"
    if not STATE.exists():
        print(
            f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource '{got.name}' was not found",
            file=sys.stderr,
        )
        return 1
    print(STATE.read_text(), end="")
    return 0


def tpu_vm_create(got) -> int:
    assert got.accelerator_type and got.version
    STATE.write_text("READY\n")
    return 0


def tpu_vm_delete(got) -> int:
    STATE.unlink()
    return 0


def tpu_vm_ssh(got) -> int:
    """Runs the command on all workers, as sshd would: in a home directory, by the user's shell."""
    assert got.worker == "all"
    if (DIRECTORY / "lost").exists():
        return 255
    codes = [0] * WORKERS

    def connect(worker: int) -> None:
        codes[worker] = subprocess.run(
            ["bash", "-c", got.command], env=worker_environment(worker), check=False
        ).returncode

    threads = [threading.Thread(target=connect, args=(worker,)) for worker in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return next((code for code in codes if code), 0)


def worker_environment(worker: int) -> dict[str, str]:
    home = DIRECTORY / f"worker-{worker}"
    home.mkdir(exist_ok=True)
    return {**os.environ, "HOME": str(home), "WORKER": str(worker)}


def tpu_vm_scp(got) -> int:
    *sources, target = got.paths
    name, _, directory = target.partition(":")
    assert name and directory and got.worker == "all"
    for worker in range(WORKERS):
        to = Path(worker_environment(worker)["HOME"]) / directory
        subprocess.run(["cp", "-r", *sources, str(to)], check=True)
    return 0


def queued_resources_create(got) -> int:
    assert got.accelerator_type and got.runtime_version and got.node_id
    return 0


def queued_resources_describe(got) -> int:
    assert got.format == "value(state.state)"
    states = DIRECTORY / "states"
    now, *later = states.read_text().split()
    print(now)
    states.write_text(" ".join(later))
    if now == "ACTIVE":
        STATE.write_text("READY\n")
    return 0


def queued_resources_delete(got) -> int:
    assert got.force and got.quiet
    STATE.unlink(missing_ok=True)
    return 0


def python3(arguments: list[str]) -> int:
    """Builds a wheel, with pip."""
    assert arguments[:2] == ["-m", "pip"], arguments
    known = parser("pip", "--quiet --no-deps", values="--wheel-dir", positional="action source")
    got = known.parse_args(arguments[2:])
    assert got.action == "wheel" and (Path(got.source) / "pyproject.toml").is_file()
    Path(got.wheel_dir).mkdir(exist_ok=True)
    (Path(got.wheel_dir) / "kdist-0.1.0-py3-none-any.whl").touch()
    return 0


def hostname(arguments: list[str]) -> int:
    print(f"t1v-n-0123abcd-w-{os.environ['WORKER']}")
    return 0


def uv(arguments: list[str]) -> int:
    """Makes an environment; what is installed into it must be there."""
    if arguments[0] == "venv":
        got = parser("uv venv", "--quiet --allow-existing", values="--python", positional="path").parse_args(
            arguments[1:]
        )
        (Path(got.path) / "bin").mkdir(parents=True)
    else:
        assert arguments[:2] == ["pip", "install"]
        known = parser("uv pip install", "--quiet", values="--python --reinstall-package", many="packages")
        got = known.parse_args(arguments[2:])
        (wheel,) = got.packages
        assert wheel.endswith(".whl[tpu]") and Path(wheel.removesuffix("[tpu]")).is_file(), wheel
    return 0


KUBECTL = {
    "apply": ("", "--filename", "", ""),
    "logs": ("--follow --prefix", "--namespace --selector --container --tail --max-log-requests", "", ""),
    "delete": ("", "--namespace", "kind name", ""),
}


def kubectl(arguments: list[str]) -> int:
    flags, values, positional, many = KUBECTL[arguments[0]]
    got = parser(arguments[0], flags, values=values, positional=positional, many=many).parse_args(arguments[1:])
    if arguments[0] == "apply":
        assert got.filename == "-"
        (DIRECTORY / "manifest").write_text(sys.stdin.read())
    return 0


def srun(arguments: list[str]) -> int:
    """Runs the tasks of a job of one node, this one."""
    known = parser("srun", "--label", values="--kill-on-bad-exit --wait --cpus-per-task")
    known.add_argument("command", nargs=argparse.REMAINDER)
    got = known.parse_args(arguments)
    assert got.kill_on_bad_exit == "0" and got.wait
    tasks = []
    for number in range(int(os.environ["SLURM_NTASKS"])):
        step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
        own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        tasks.append(subprocess.Popen(got.command, env={**os.environ, **step, **own}))
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(arguments: list[str]) -> int:
    assert arguments == ["requeue", os.environ["SLURM_JOB_ID"]], arguments
    return 0


def nvidia_smi(arguments: list[str]) -> int:
    assert arguments == ["--query-gpu=index", "--format=csv,noheader"], arguments
    print("0\n1")
    return 0


def main() -> None:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    with (DIRECTORY / "calls").open("a") as calls:
        calls.write(json.dumps([name, *arguments]) + "\n")
    sys.exit(globals()[name.replace("-", "_")](arguments))


if __name__ == "__main__":
    main()
