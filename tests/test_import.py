"""`import kdist` is light: it loads neither what a run may not need nor what only a command line needs."""

import subprocess
import sys

HEAVY = ("orbax", "grain", "rich", "tyro", "tensorflow", "keras", "sklearn")

SCRIPT = f"""
import sys, kdist
print([name for name in {HEAVY} if any(m == name or m.startswith(name + ".") for m in sys.modules)])
print(all(hasattr(kdist, name) for name in kdist.__all__), kdist.__version__)
import jax
print(jax._src.xla_bridge.backends_are_initialized())
"""


def test_importing_kdist_loads_no_heavy_package_and_touches_no_device():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    heavy, names, touched = done.stdout.splitlines()
    assert heavy == "[]"
    assert names == "True 0.1.0"
    assert touched == "False"  # kdist.initialize must still be able to come first
