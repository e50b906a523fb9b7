"""launch/tpu_vm.sh, against a gcloud that runs what it sends to the workers in two directories of this host."""

import os
import signal
import subprocess

import pytest

OPTIONS = ["--name", "lm", "--project", "p", "--zone", "z"]
NEW = [*OPTIONS, "--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite"]
WHERE = ["--zone=z", "--project=p"]
CREATE = "compute tpus tpu-vm create lm --version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-16"
ASK = (
    "compute tpus queued-resources create lm --node-id=lm --runtime-version=v2-alpha-tpuv5-lite "
    "--accelerator-type=v5litepod-16"
)


def actions(stage):
    """What gcloud was asked to do, in order: `tpu-vm create`, ..."""
    return [" ".join(call[2:4]) for call in stage.calls("gcloud")]


@pytest.fixture
def ready(stage):
    """The stage, with a TPU VM that is there."""
    (stage.directory / "state").write_text("READY\n")
    return stage


def test_one_is_created_used_and_deleted(stage, tmp_path):
    extra = tmp_path / "my data.txt"
    extra.write_text("rows")
    command = ["sh", "-c", 'echo "$1 and $WORKER"; cat "my data.txt"; ls configs/digits.py', "_", "a  'b' $HOME"]
    out, err = stage.run("tpu_vm.sh", *NEW, "--spot", "--copy", str(extra), "--delete", "--", *command)
    for worker in (0, 1):
        said = [line[4:] for line in out.splitlines() if line.startswith(f"[{worker}] ")]
        assert said == [f"a  'b' $HOME and {worker}", "rowsconfigs/digits.py"]
    assert actions(stage) == [
        "tpu-vm describe",
        "tpu-vm create",
        "tpu-vm ssh",
        "tpu-vm scp",
        "tpu-vm ssh",  # installs
        "tpu-vm ssh",  # starts
        "tpu-vm ssh",  # follows
        "tpu-vm ssh",  # asks for the exit codes
        "tpu-vm delete",
    ]
    assert stage.calls("gcloud")[1] == [*CREATE.split(), "--spot", *WHERE]
    assert len(stage.calls("uv")) == 4 and len(stage.calls("python3")) == 1
    assert not (stage.directory / "state").exists()
    assert err == ""


def test_one_that_is_there_is_used_and_left(ready):
    _, err = ready.run("tpu_vm.sh", *OPTIONS, "--delete", "--", "true")
    assert not any("create" in action or "delete" in action for action in actions(ready))
    assert "lm was there before, and is not deleted" in err


def test_one_that_was_created_is_left_without_delete(stage):
    _, err = stage.run("tpu_vm.sh", *NEW, "--", "true")
    assert "tpu-vm delete" not in actions(stage)
    assert "gcloud compute tpus tpu-vm delete lm --quiet --zone=z --project=p" in err
    assert "costs" not in err and "cost money" in err


def test_a_queued_resource_is_waited_for(stage):
    (stage.directory / "states").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    arguments = [*NEW, "--queued", "--reserved", "--valid-until", "6h", "--delete"]
    _, err = stage.run("tpu_vm.sh", *arguments, "--", "true")
    create, *_ = (call for call in stage.calls("gcloud") if call[3] == "create")
    assert create == [*ASK.split(), "--reserved", "--valid-until-duration=6h", *WHERE]
    assert actions(stage)[2:5] == ["queued-resources describe"] * 3
    assert stage.calls("gcloud")[-1] == [
        "compute",
        "tpus",
        *"queued-resources delete lm --force --quiet".split(),
        *WHERE,
    ]
    assert [line.rsplit()[-1] for line in err.splitlines()] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def test_a_queued_resource_that_fails_is_deleted(stage):
    (stage.directory / "states").write_text("WAITING_FOR_RESOURCES FAILED")
    _, err = stage.run("tpu_vm.sh", *NEW, "--queued", "--delete", "--", "true", code=1)
    assert "the queued resource is FAILED" in err
    assert actions(stage)[-1] == "queued-resources delete" and "tpu-vm ssh" not in actions(stage)


def test_one_that_is_not_ready_is_not_touched(stage):
    (stage.directory / "state").write_text("PREEMPTED\n")
    _, err = stage.run("tpu_vm.sh", *OPTIONS, "--delete", "--", "true", code=1)
    assert "lm is there, and is PREEMPTED" in err
    assert actions(stage) == ["tpu-vm describe"]


@pytest.mark.parametrize(
    "first, second, code", [(0, 3, 3), (1, 43, 43), (43, 1, 43), (42, 1, 1), (1, 42, 1), (42, 0, 42)]
)
def test_exit_codes_of_the_workers(ready, first, second, code):
    script = f"exit $((WORKER == 0 ? {first} : {second}))"
    ready.run("tpu_vm.sh", *OPTIONS, "--restart", "0", "--", "bash", "-c", script, code=code)


@pytest.mark.parametrize("restarts, code, runs", [(1, 42, 2), (5, 0, 3)])
def test_a_preempted_run_is_started_again(ready, restarts, code, runs):
    """It would end well in its third start."""
    script = "echo run | tee -a runs; test $(wc -l < runs) = 3 || exit 42"
    arguments = [*OPTIONS, "--restart", str(restarts), "--", "sh", "-c", script]
    out, err = ready.run("tpu_vm.sh", *arguments, code=code)
    assert sorted(out.splitlines()) == ["[0] run"] * runs + ["[1] run"] * runs
    assert err.count("starts again") == runs - 1


def test_an_interrupt_tells_the_run_to_save_and_deletes_then(stage):
    script = "trap 'echo saves; exit 42' TERM; echo begins; while :; do sleep 0.05; done"
    with stage.started("tpu_vm.sh", *NEW, "--delete", "--", "sh", "-c", script) as process:
        assert {process.stdout.readline() for _ in range(2)} == {"[0] begins\n", "[1] begins\n"}
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to gcloud too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 42, err
    assert "[0] saves" in out and "[1] saves" in out
    assert "tells the command to save and end" in err and "starts again" not in err
    assert actions(stage)[-1] == "tpu-vm delete"


def test_workers_that_are_lost_are_given_up_and_deleted(stage):
    script = 'echo PREEMPTED > "$STAND_IN_DIRECTORY/state"; touch "$STAND_IN_DIRECTORY/lost"; exec sleep 3'
    _, err = stage.run("tpu_vm.sh", *NEW, "--delete", "--", "sh", "-c", script, code=1)
    assert "lost the workers of lm, whose state is now: PREEMPTED" in err
    assert actions(stage)[-1] == "tpu-vm delete"


def test_a_dry_run_prints_every_command_and_runs_none(stage):
    out, err = stage.run("tpu_vm.sh", *NEW, "--queued", "--delete", "--dry-run", "--", "kdist", "train", "a b.py")
    assert (stage.calls("gcloud"), stage.calls("uv"), stage.calls("python3"), err) == ([], [], [], "")
    stage.environment["STAND_IN_IDLES"] = "yes"  # what was printed is a script, whose arguments gcloud knows
    subprocess.run(["bash", "-e"], input=out, env=stage.environment, text=True, check=True, timeout=60)
    assert actions(stage) == [
        "tpu-vm describe",
        "queued-resources create",
        "queued-resources describe",
        "tpu-vm ssh",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "queued-resources delete",
    ]
    assert all(call[-2:] == WHERE for call in stage.calls("gcloud"))
    start = stage.calls("gcloud")[6][6]
    assert start.startswith("--command=cd ~/kdist-run") and "kdist\\ train" in start


def test_a_failure_to_ask_is_no_reason_to_create(stage):
    """As where nobody is logged in."""
    gcloud = stage.directory / "bin" / "gcloud"
    gcloud.write_text("#!/bin/sh\necho 'ERROR: You do not currently have an active account selected.' >&2\nexit 1\n")
    _, err = stage.run("tpu_vm.sh", *NEW, "--delete", "--", "true", code=1)
    assert "cannot ask for lm in z of p: ERROR: You do not currently have an active account" in err


def test_without_gcloud(stage):
    (stage.directory / "bin" / "gcloud").unlink()
    stage.environment["PATH"] = str(stage.directory / "bin")
    for tool in ("bash", "dirname", "basename"):
        (stage.directory / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    _, err = stage.run("tpu_vm.sh", *OPTIONS, "--", "true", code=1)
    assert "gcloud is not installed" in err
