"""DataParallel: its mesh, its shardings and its errors."""

import jax
import pytest
from jax.sharding import PartitionSpec

from kdist import DataParallel
from kdist.distribution import BATCH_AXES
from kdist.errors import ConfigError, DistributionError


@pytest.mark.parametrize(
    ("n", "replicas", "shape"),
    [(8, "auto", (1, 8)), (8, 2, (2, 4)), (8, 8, (8, 1)), (3, 1, (1, 3)), (1, "auto", (1, 1))],
)
def test_mesh(n, replicas, shape):
    distribution = DataParallel(devices=jax.devices()[:n], replicas=replicas)
    assert distribution.mesh.axis_names == BATCH_AXES == ("replica", "data")
    assert distribution.mesh.devices.shape == shape
    assert distribution.mesh.devices.ravel().tolist() == jax.devices()[:n]
    assert distribution.num_devices == n
    assert distribution.platform == "cpu"
    assert set(distribution.mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_all_devices_by_default():
    assert DataParallel().num_devices == jax.device_count()


def test_shardings():
    distribution = DataParallel(replicas=2)
    assert distribution.replicated.spec == PartitionSpec()
    assert distribution.batch_sharding().spec == PartitionSpec(BATCH_AXES)
    assert distribution.batch_sharding(axis=1).shard_shape((5, 16, 3)) == (5, 2, 3)


def test_it_is_a_value():
    a, b = (DataParallel(devices=list(jax.devices()[:2])) for _ in range(2))
    assert a == b and hash(a) == hash(b)
    assert a != DataParallel(devices=jax.devices()[:3])
    with pytest.raises(AttributeError):
        a.zero_stage = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"zero_stage": stage}, "zero_stage must be 0, 1, 2 or 3") for stage in (-1, 4, True, "1", 1.5, None)],
        ({"replicas": 0}, "replicas must be 'auto' or a positive integer. Received: 0"),
        ({"replicas": 1.0}, "replicas must be"),
        ({"replicas": True}, "replicas must be"),
        ({"replicas": "two"}, "Received: 'two'"),
        ({"devices": []}, "devices must name at least one device"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DataParallel(**arguments)


def test_devices_that_do_not_divide():
    with pytest.raises(DistributionError, match="8 devices do not divide into 3 replicas"):
        _ = DataParallel(replicas=3).mesh
