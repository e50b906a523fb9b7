"""What holds for all scripts: ShellCheck finds nothing, --help is there, mistakes are usage errors."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
WITH_HELP = ["gke.sh", "gpu.sh", "tpu_vm.sh"]
TPU = "--name lm --project p --zone z"
GKE = "apply --name lm --image i --accelerator a --topology 4x4 --hosts 4"


def test_shellcheck_finds_nothing():
    assert SCRIPTS == ["common.sh", "gke.sh", "gpu.sh", "slurm.sbatch", "tpu_vm.sh"]
    checker = Path(sys.executable).with_name("shellcheck")
    command = [checker, "--external-sources", "--source-path=SCRIPTDIR/..", *SCRIPTS]
    done = subprocess.run(command, cwd=LAUNCH, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", WITH_HELP)
def test_help(stage, script):
    out, _ = stage.run(script, "--help")
    assert f"Usage: launch/{script}" in out and "--dry-run" in out
    assert "set -euo" not in out


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("gpu.sh", "", "what to run is missing"),
        ("gpu.sh", "kdist train", "unknown option kdist"),
        ("gpu.sh", "--", "what to run is missing"),
        ("gpu.sh", "--gpus", "--gpus needs a value"),
        ("gpu.sh", "--gpus -- true", "--gpus needs a value"),
        ("gpu.sh", "--gpus 0;1 -- true", "--gpus must look like"),
        ("gpu.sh", "--gpus= -- true", "unknown option --gpus="),
        ("gpu.sh", "--gpus=0 -- true", "unknown option --gpus=0"),
        ("gpu.sh", "--restart ever -- true", "--restart must look like"),
        ("slurm.sbatch", "", "what to run is missing"),
        ("slurm.sbatch", "true", "not in a job"),
        ("gke.sh", "", "expected apply, logs or delete"),
        ("gke.sh", "destroy", "expected apply, logs or delete"),
        ("gke.sh", "logs", "--name is missing"),
        ("gke.sh", "delete --name Upper", "--name must look like"),
        ("gke.sh", f"logs --name {'a' * 41}", "--name must look like"),
        ("gke.sh", "apply --name lm -- true", "--image is missing"),
        ("gke.sh", GKE, "what to run is missing"),
        ("gke.sh", f"{GKE} --hosts 3 -- true", "--hosts 3 of --chips 4 are 12 chips, and --topology 4x4 has 16"),
        ("gke.sh", f"{GKE} --topology 16 -- true", "--topology must look like"),
        ("gke.sh", f"{GKE} --slices 0 -- true", "--slices must look like"),
        ("gke.sh", f"{GKE} --bogus -- true", "unknown option --bogus"),
        ("tpu_vm.sh", "-- true", "--name is missing"),
        ("tpu_vm.sh", "--name lm -- true", "--project is missing"),
        ("tpu_vm.sh", "--name lm --project p -- true", "--zone is missing"),
        ("tpu_vm.sh", f"{TPU} -- true", "--type is missing"),
        ("tpu_vm.sh", f"{TPU} --type t -- true", "--runtime is missing"),
        ("tpu_vm.sh", f"{TPU}", "what to run is missing"),
        ("tpu_vm.sh", f"{TPU} --copy /nowhere -- true", "no such file"),
        ("tpu_vm.sh", f"{TPU} --zone", "--zone needs a value"),
    ],
)
def test_mistakes(stage, script, arguments, said):
    out, err = stage.run(script, *arguments.split(), code=2)
    assert out == "" and said in err
    for tool in ("kubectl", "srun"):
        assert stage.calls(tool) == []
    assert [call[3] for call in stage.calls("gcloud")] in ([], ["describe"])
