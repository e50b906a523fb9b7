"""launch/slurm.sbatch: what it gives srun, when it requeues, and two real processes that join as in a job."""

import re
import signal
import socket
import sys
from pathlib import Path

import pytest

JOINS = Path(__file__).with_name("joins.py")


@pytest.fixture
def job(stage):
    """The stage, in a job of two tasks; its number makes the coordinator's port, 61440 + number % 4096."""
    for number in range(4096):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 61440 + number)) != 0:
                break
    stage.environment |= {"SLURM_JOB_ID": str(4096 * 7 + number), "SLURM_NTASKS": "2"}
    return stage


def test_options_of_the_job():
    text = (Path(__file__).parents[2] / "launch" / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # JAX's detection gives each task one device
    assert options["signal"] == "TERM@300" and "requeue" in options and options["open-mode"] == "append"


def test_a_dry_run_prints_the_step(stage):
    stage.environment["SLURM_CPUS_PER_TASK"] = "8"
    out, _ = stage.run("slurm.sbatch", "--dry-run", "kdist", "train", "a b.py")
    assert out.splitlines() == [
        "srun --label --kill-on-bad-exit=0 --wait=600 --cpus-per-task=8 kdist train a\\ b.py ",
        'scontrol requeue "$SLURM_JOB_ID"  # if that ends with 42',
    ]
    assert stage.calls("srun") == []


@pytest.mark.parametrize(
    "code, restarts, requeued", [(0, "", 0), (1, "", 0), (43, "", 0), (42, "", 1), (42, "99", 1), (42, "100", 0)]
)
def test_a_job_is_requeued_on_42_alone(job, code, restarts, requeued):
    job.environment["SLURM_RESTART_COUNT"] = restarts
    job.run("slurm.sbatch", "sh", "-c", f"exit {code}", code=code)
    assert job.calls("scontrol") == [["requeue", job.environment["SLURM_JOB_ID"]]] * requeued


def test_a_signal_to_the_job_does_not_cut_the_save_short(job, tmp_path):
    """Slurm signals the tasks, and the shell of the job too where it preempts."""
    done = tmp_path / "done"
    saves = f"echo saves; until test -e {done}; do sleep 0.01; done; exit 42"
    with job.started("slurm.sbatch", "sh", "-c", saves) as process:
        assert process.stdout.readline() == "saves\n"
        process.send_signal(signal.SIGTERM)
        done.touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 42
    assert "waits for the processes to save" in err
    assert len(job.calls("scontrol")) == 1


def test_two_processes_join_from_the_variables_of_slurm(job):
    out, _ = job.run("slurm.sbatch", sys.executable, str(JOINS))
    said = sorted(line for line in out.splitlines() if line.startswith("process"))  # Gloo says something too
    assert said == [f"process {n} of 2 hears [0, 1]" for n in range(2)]
