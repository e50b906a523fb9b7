"""launch/gke.sh and gke_jobset.yaml: a manifest that the API knows every field of, and whose containers run here.

What Kubernetes would do with the manifest is done by `containers`: fields of the pod become variables, references to
variables are expanded, and the command is run, in as many processes as there would be pods.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

JOINS = Path(__file__).with_name("joins.py")
VALUES = {
    "--name": "lm",
    "--image": "gcr.io/p/kdist:1",
    "--accelerator": "tpu-v5-lite-podslice",
    "--topology": "4x4",
    "--hosts": "4",
}
WORDS = ["sh", "-c", 'echo "$HOME & \\ $(date)" $$\n\t__NAME__ {{x}}', "", "--flag=é 'q'", "true"]

FIELDS = {
    "": "apiVersion kind metadata spec",
    "metadata": "name namespace annotations",
    "spec": "failurePolicy replicatedJobs",
    "failurePolicy": "maxRestarts rules",
    "failurePolicy.rules": "name action onJobFailureReasons",
    "replicatedJobs": "name replicas template",
    "template.spec": "completionMode parallelism completions backoffLimit podFailurePolicy template",
    "podFailurePolicy.rules": "action onExitCodes onPodConditions",
    "onExitCodes": "containerName operator values",
    "onPodConditions": "type status",
    "pod": "restartPolicy terminationGracePeriodSeconds nodeSelector containers",
    "containers": "name image env ports command args resources",
}
"""Fields of JobSet v1alpha2 (api/jobset/v1alpha2/jobset_types.go), batch/v1 Job and core/v1 Pod that are used."""


def options(**changed):
    values = VALUES | {f"--{name}": value for name, value in changed.items()}
    return [word for pair in values.items() for word in pair]


def manifest(stage, *command, **changed):
    """What is applied."""
    stage.run("gke.sh", "apply", *options(**changed), "--", *command)
    assert stage.calls("kubectl")[-1] == ["apply", "--filename=-"]
    return yaml.safe_load((stage.directory / "manifest").read_text())


def only_fields(got, name):
    assert set(got) <= set(FIELDS[name].split()), (name, set(got))


def expand(text, variables):
    """References as in Kubernetes: $(NAME), and $$ for a $; those to nothing stay."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)


def containers(made, address):
    """Command and environment of each container, with this address of the coordinator in place of the pod's name."""
    (job,) = made["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    host, _, port = address.rpartition(":")
    for index in range(job["replicas"]):
        for completion in range(job["template"]["spec"]["completions"]):
            fields = {
                "metadata.annotations['jobset.sigs.k8s.io/job-index']": str(index),
                "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(completion),
                "status.podIP": host,
            }
            variables = {}
            for variable in container["env"]:
                if "value" in variable:
                    value = expand(variable["value"], variables)
                else:
                    value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
                variables[variable["name"]] = value.replace("lm-slice-0-0.lm:", f"{host}:").replace(":8482", f":{port}")
            yield [expand(word, variables) for word in container["command"] + container["args"]], variables


def run_containers(made, stage, address="127.0.0.1:1"):
    """What each container prints."""
    with contextlib.ExitStack() as stack:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = []
        for command, variables in containers(made, address):
            process = subprocess.Popen(command, env={**stage.environment, **variables}, **pipes)
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process)
        ends = [process.communicate(timeout=100) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), ends
    return [out for out, _ in ends]


def test_the_manifest(stage):
    made = manifest(stage, "kdist", "train", "config.py", namespace="team", slices="2", restart="7", grace="600")
    only_fields(made, "")
    only_fields(made["metadata"], "metadata")
    only_fields(made["spec"], "spec")
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("lm", "team")
    (job,) = made["spec"]["replicatedJobs"]
    only_fields(job, "replicatedJobs")
    assert (job["name"], job["replicas"]) == ("slice", 2)
    work = job["template"]["spec"]
    only_fields(work, "template.spec")
    assert (work["completionMode"], work["parallelism"], work["completions"]) == ("Indexed", 4, 4)
    pod = work["template"]["spec"]
    only_fields(pod, "pod")
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    only_fields(container, "containers")
    assert container["image"] == "gcr.io/p/kdist:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert all(value is None or isinstance(value, str) for value in variables.values())  # Kubernetes takes no numbers
    assert variables["JAX_NUM_PROCESSES"] == "8"
    assert variables["JAX_COORDINATOR_ADDRESS"] == "lm-slice-0-0.lm:8482"
    assert "__" not in yaml.safe_dump(made)


def test_what_starts_the_run_again(stage):
    """A pod that ended with 42, or whose node was taken away, fails its job by policy; then all starts again."""
    made = manifest(stage, "true", restart="7")
    policy = made["spec"]["failurePolicy"]
    only_fields(policy, "failurePolicy")
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    only_fields(rule, "failurePolicy.rules")
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["BackoffLimitExceeded"])
    work = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = work["template"]["spec"]
    assert (work["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # Job takes a podFailurePolicy with Never only
    preempted, disrupted = work["podFailurePolicy"]["rules"]
    only_fields(preempted, "podFailurePolicy.rules")
    only_fields(preempted["onExitCodes"], "onExitCodes")
    assert preempted["onExitCodes"] == {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [42]}
    only_fields(disrupted["onPodConditions"][0], "onPodConditions")
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert preempted["action"] == disrupted["action"] == "FailJob"


def test_words_arrive_as_they_were_given(stage):
    """Through bash, YAML, the expansion of Kubernetes and the shell of the container."""
    shows = "import json, os, sys; print(json.dumps([os.environ['JAX_PROCESS_ID'], sys.argv[1:]]))"
    made = manifest(stage, sys.executable, "-ISc", shows, *WORDS, slices="2", topology="2x4", hosts="2")
    said = [yaml.safe_load(out) for out in run_containers(made, stage)]
    assert said == [[str(n), WORDS] for n in range(4)]  # processes are counted slice by slice


def test_two_processes_join_from_the_variables_of_the_manifest(stage):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    made = manifest(stage, sys.executable, str(JOINS), slices="2", topology="2x2", hosts="1")
    for n, out in enumerate(run_containers(made, stage, address)):
        assert f"process {n} of 2 hears [0, 1]" in out.splitlines()


def test_a_command_with_control_characters_is_refused(stage):
    _, err = stage.run("gke.sh", "apply", *options(), "--", "echo", "a\x1bb", code=2)
    assert "control character" in err
    assert stage.calls("kubectl") == []


def test_logs_and_delete(stage):
    stage.run("gke.sh", "logs", "--name", "lm", "--namespace", "team")
    stage.run("gke.sh", "delete", "--name", "lm")
    logs, delete = stage.calls("kubectl")
    assert logs[0] == "logs" and "--selector=jobset.sigs.k8s.io/jobset-name=lm" in logs and "--namespace=team" in logs
    assert delete == ["delete", "jobset", "lm", "--namespace=default"]


@pytest.mark.parametrize("action", ["apply", "logs", "delete"])
def test_a_dry_run_runs_nothing(stage, action):
    arguments = [*options(), "--", "true"] if action == "apply" else ["--name", "lm"]
    out, _ = stage.run("gke.sh", action, "--dry-run", *arguments)
    assert stage.calls("kubectl") == []
    *made, command = out.rstrip("\n").split("\n---\n")
    assert command.split()[:2] == ["kubectl", action]
    assert [yaml.safe_load(one)["kind"] for one in made] == ["JobSet"] * (action == "apply")
    assert os.listdir(stage.directory) == ["bin"]
