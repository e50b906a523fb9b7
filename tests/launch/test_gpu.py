"""launch/gpu.sh: which GPUs the processes see; through the real `kdist launch`, with a stand-in for nvidia-smi."""

import pytest

SHOWS = ["sh", "-c", 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES on $JAX_PLATFORMS: $CUDA_VISIBLE_DEVICES"']


@pytest.mark.parametrize(
    "visible, arguments, command",
    [
        ("", "", "kdist launch --platform cuda --restart 100 -n 1"),
        ("", "--restart 3", "kdist launch --platform cuda --restart 3 -n 1"),
        ("", "--gpus 1,3", "env CUDA_VISIBLE_DEVICES=1\\,3 kdist launch --platform cuda --restart 100 -n 1"),
        ("5", "", "env CUDA_VISIBLE_DEVICES=5 kdist launch --platform cuda --restart 100 -n 1"),
        (
            "",
            "--per-gpu --gpus 1,GPU-ab,3",
            "env CUDA_VISIBLE_DEVICES=1\\,GPU-ab\\,3 kdist launch --platform cuda --restart 100 -n 3 --devices 1",
        ),
    ],
)
def test_a_dry_run_prints_the_command(stage, visible, arguments, command):
    stage.environment["CUDA_VISIBLE_DEVICES"] = visible
    out, _ = stage.run("gpu.sh", *arguments.split(), "--dry-run", "--", "kdist", "train", "a b.py", "--resume")
    assert out == f"{command} -- kdist train a\\ b.py --resume\n"


def test_one_process_a_gpu(stage):
    out, _ = stage.run("gpu.sh", "--per-gpu", "--", *SHOWS)
    assert sorted(out.splitlines()) == ["[0] 0 of 2 on cuda: 0", "[1] 1 of 2 on cuda: 1"]


def test_exit_codes_are_kept(stage):
    stage.run("gpu.sh", "--restart", "0", "--gpus", "4", "--", "sh", "-c", "exit 43", code=43)


def test_without_nvidia_smi_the_gpus_must_be_given(stage):
    (stage.directory / "bin" / "nvidia-smi").unlink()
    _, err = stage.run("gpu.sh", "--per-gpu", "--", *SHOWS, code=1)
    assert "give --gpus" in err
