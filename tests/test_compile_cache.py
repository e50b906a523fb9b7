"""The compile cache: where it is, what makes it unsafe, and that a second process reads what the first has compiled.

That several processes share it, or have none, is in `tests/multiprocess/test_start_up.py`.
"""

import os
import re
import stat
import subprocess
import sys
import warnings

import jax
import pytest

from kdist import compile_cache
from kdist.compile_cache import Choice, choose, trouble

SCRIPT = """
import flax.linen as nn, jax, kdist, numpy as np
x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
model = kdist.Model(nn.Dense(2))
model.compile("adam", "mse")
for _ in range(2):
    model.fit(x, x[:, :2], epochs=1, verbose=2)
print("directory", jax.config.jax_compilation_cache_dir)
"""
SECONDS = 120
LINE = re.compile(r"Compile cache: (\d+) hits?, ([\d.]+) s saved, (\d+) miss(?:es)? \((.*)\)")


@pytest.fixture(autouse=True)
def undecided(monkeypatch, tmp_path):
    """An environment that says nothing of caches, with a home of its own."""
    for name in (compile_cache.VARIABLE, "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jax.config.values["jax_compilation_cache_dir"] is None


@pytest.fixture
def fresh(monkeypatch):
    """The cache as in a process that has not decided yet; JAX itself is told nothing."""
    updates = {}
    monkeypatch.setattr(compile_cache, "_counts", compile_cache._Counts())
    monkeypatch.setattr(compile_cache._Counts, "listen", lambda self: setattr(self, "listening", True))
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    return updates


# Where ---------------------------------------------------------------------------------------------


def test_accelerators_have_one_and_the_cpu_has_none(monkeypatch, tmp_path):
    assert choose("tpu").path == choose("gpu").path == str(tmp_path / ".cache/kdist/jax")
    assert choose("cpu").path is None and "KDIST_COMPILE_CACHE" in choose("cpu").reason
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert choose("tpu").path == "/caches/kdist/jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")  # which the standard says to ignore
    assert choose("tpu").path == str(tmp_path / ".cache/kdist/jax")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_variable_decides(monkeypatch, tmp_path, platform):
    monkeypatch.chdir(tmp_path)
    for value, path in (
        ("/a/b", "/a/b"),
        ("~/c", str(tmp_path / "c")),
        ("d", str(tmp_path / "d")),
        ("gs://b/d", "gs://b/d"),
    ):
        monkeypatch.setenv("KDIST_COMPILE_CACHE", value)
        assert choose(platform) == Choice(path, "KDIST_COMPILE_CACHE")
    for value in ("0", "off", "OFF", "none"):
        monkeypatch.setenv("KDIST_COMPILE_CACHE", value)
        assert choose(platform).path is None


def test_what_jax_was_told_goes_first(monkeypatch):
    monkeypatch.setenv("KDIST_COMPILE_CACHE", "/a")
    try:
        jax.config.update("jax_compilation_cache_dir", "/jax")
        assert choose("tpu") == Choice("/jax", "jax_compilation_cache_dir", ours=False)
        jax.config.update("jax_enable_compilation_cache", False)
        assert choose("tpu") == Choice(None, "jax_enable_compilation_cache is off", ours=False)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", True)


# Safe ----------------------------------------------------------------------------------------------


def test_it_is_made_for_its_user_alone(monkeypatch, tmp_path, fresh):
    path = tmp_path / "a/b/cache"
    monkeypatch.setenv("KDIST_COMPILE_CACHE", str(path))
    before = os.umask(0)
    try:
        compile_cache.enable()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert fresh == {"jax_compilation_cache_dir": str(path)}
    compile_cache.enable()
    assert len(fresh) == 1


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_one_that_others_may_write_to_is_refused(monkeypatch, tmp_path, fresh, mode):
    path = tmp_path / "cache"
    path.mkdir()
    path.chmod(mode)
    monkeypatch.setenv("KDIST_COMPILE_CACHE", str(path))
    with pytest.warns(UserWarning, match=rf"No compile cache at {path}: others may write to it \(mode 0?{mode:o}\)"):
        compile_cache.enable()
    assert fresh == {}
    path.chmod(0o755)
    assert trouble(path) == ""


def test_one_of_another_user_is_refused(monkeypatch, tmp_path):
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert trouble(tmp_path) == f"it belongs to another user (uid {uid}, this is {uid + 1})"


def test_what_is_no_directory_is_refused(monkeypatch, tmp_path, fresh):
    file = tmp_path / "file"
    file.touch()
    assert trouble(file) == "it is no directory"
    assert trouble(tmp_path / "none").startswith("it cannot be read")
    monkeypatch.setenv("KDIST_COMPILE_CACHE", str(file / "cache"))
    with pytest.warns(UserWarning, match="it cannot be made: .*File exists.* Set KDIST_COMPILE_CACHE to another"):
        compile_cache.enable()
    assert fresh == {}


def test_nothing_is_said_or_made_without_one(tmp_path, fresh):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_cache.enable()
    assert fresh == {} and not list(tmp_path.iterdir())


# What it is good for -------------------------------------------------------------------------------


def run(**variables):
    """What a process prints."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_reads_what_the_first_has_compiled(tmp_path):
    path = str(tmp_path / "cache")
    told = [LINE.findall(run(KDIST_COMPILE_CACHE=path)) for _ in range(2)]
    assert [len(lines) for lines in told] == [1, 1]  # once in a process, though it trains twice
    (cold,), (warm,) = told
    assert cold[0] == "0" and cold[2] == warm[0] != "0" and warm[2] == "0"
    assert cold[3] == warm[3] == path


def test_a_directory_of_jaxs_own_is_kept_and_counted(tmp_path):
    path = str(tmp_path / "jax")
    out = run(JAX_COMPILATION_CACHE_DIR=path, KDIST_COMPILE_CACHE=str(tmp_path / "other"))
    assert LINE.search(out)[4] == path and f"directory {path}" in out
    assert not (tmp_path / "other").exists()
