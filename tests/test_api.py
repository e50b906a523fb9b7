"""The public names: `import kdist` is light, and they are there when they are used."""

import pickle
import subprocess
import sys

import pytest

import kdist
from kdist import api

HEAVY = ("orbax", "grain", "rich", "tyro", "tensorflow", "keras", "sklearn", "flax.nnx")

SCRIPT = f"""
import sys, kdist
print(sorted(name for name in sys.modules if name.startswith(("kdist", "jax", "numpy"))), kdist.__version__)
from kdist import *
print([name for name in {HEAVY} if name in sys.modules])
import jax
print(jax._src.xla_bridge.backends_are_initialized())
"""


def test_importing_kdist_loads_nothing_and_its_names_load_no_heavy_package_and_touch_no_device():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded, heavy, touched = done.stdout.splitlines()
    assert loaded == "['kdist'] 0.1.0"
    assert heavy == "[]"
    assert touched == "False"  # kdist.initialize must still be able to come first


@pytest.mark.parametrize("module", ["data", "step", "cli.doctor"])
def test_a_module_that_is_imported_first_does_not_wait_for_the_others(module):
    """It would find itself half imported, by those that need it."""
    script = f"import kdist.{module}, sys; assert 'kdist.api' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_those_of_the_list():
    assert kdist.__all__ is api.__all__
    assert all(getattr(kdist, name) is getattr(api, name) for name in api.__all__)
    assert set(api.__all__) <= set(dir(kdist))
    assert pickle.loads(pickle.dumps(kdist.Config)) is kdist.Config


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="^module 'kdist' has no attribute 'Modle'"):
        kdist.Modle()
    with pytest.raises(ImportError, match="cannot import name 'Modle' from 'kdist'"):
        exec("from kdist import Modle")
