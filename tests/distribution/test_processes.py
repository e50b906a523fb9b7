"""Joining a run: what is refused, what is taken from the environment, and that one process needs none of it.

Processes that do join are in `tests/multiprocess/`.
"""

import os
import re

import jax
import pytest

import kdist
from kdist.distribution import agree, processes
from kdist.distribution.processes import Membership, find, launchers
from kdist.errors import DistributionError

FOREIGN = re.compile("^(JAX_(COORD|NUM_P|PROCESS|LOCAL)|SLURM_|OMPI_|TPU_|MEGASCALE_|KUBERNETES_)")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """An environment that knows of no cluster, in a process that uses JAX already."""
    for name in filter(FOREIGN.match, dict(os.environ)):
        monkeypatch.delenv(name)
    assert jax.devices()


def slurm(process_id=1, nodes="node[007-008]", num_nodes=2):
    return {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_NUM_NODES": str(num_nodes),
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process_id),
        "SLURM_LOCALID": "0",
    }


def ompi(local):
    return {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local),
    }


def by_jax(address, num_processes, process_id):
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(process_id),
    }


def gke(hosts, worker=1):
    return {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": str(worker)}


@pytest.fixture
def environ(monkeypatch):
    """``environ(variables)`` sets some."""
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_processes": 1},
        {"num_processes": 1, "process_id": 0},
        {"coordinator_address": "10.0.0.1:1", "num_processes": 1, "process_id": 0},
    ],
)
def test_one_process_has_nothing_to_join(arguments):
    kdist.initialize(**arguments)
    assert not jax.distributed.is_initialized()
    assert kdist.is_main_process()
    assert agree(2**32 - 1) == 2**32 - 1
    assert list(launchers()) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "needs coordinator_address, process_id too, or none of the three"),
        ({"coordinator_address": "localhost:1"}, {}, "needs num_processes, process_id too"),
        ({"coordinator_address": "localhost:1", "process_id": 0}, {}, "needs num_processes too"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2}, {}, "process_id must lie in"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": -1}, {}, "process_id must lie in"),
        ({"coordinator_address": "localhost", "num_processes": 2, "process_id": 0}, {}, "must be host:port"),
        ({"coordinator_address": "::1:80", "num_processes": 2, "process_id": 0}, {}, "must be host:port"),
        ({"coordinator_address": ":80", "num_processes": 2, "process_id": 0}, {}, "must be host:port"),
        ({"coordinator_address": "a:65536", "num_processes": 2, "process_id": 0}, {}, "must be host:port"),
        ({}, {"JAX_NUM_PROCESSES": "2"}, "needs coordinator_address, process_id too"),
        ({"process_id": 5}, by_jax("localhost:1", 2, 0), "process_id must lie"),
        ({}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be an integer. Received: 'two'"),
        ({}, {"JAX_PROCESS_ID": "0x"}, "JAX_PROCESS_ID must be an integer"),
        ({}, {**slurm(), "SLURM_NTASKS": "two"}, r"The environment cannot be read \(Slurm\): ValueError.* Give"),
        (
            {},
            {**ompi(4), "OMPI_MCA_orte_hnp_uri": "4096.0;udp"},
            r"The environment cannot be read \(Open MPI\): RuntimeError",
        ),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 0},
            {},
            r"Process 0 of 2 \(coordinator localhost:1, from arguments .*Call kdist.initialize before any other use",
        ),
    ],
)
def test_what_is_refused(environ, arguments, environment, message):
    environ(environment)
    with pytest.raises(DistributionError, match=message):
        kdist.initialize(**arguments)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        (by_jax("10.0.0.1:80", 3, 2), Membership("10.0.0.1:80", 3, 2, "arguments or JAX_*")),
        (slurm(), Membership("node007:61441", 2, 1, "Slurm", [0])),
        ({**slurm(), "JAX_COORDINATOR_PORT": "99"}, Membership("node007:99", 2, 1, "Slurm", [0])),
        ({**slurm(), "JAX_LOCAL_DEVICE_IDS": "0,1"}, Membership("node007:61441", 2, 1, "Slurm", None)),
        ({**slurm(), "JAX_COORDINATOR_ADDRESS": "a:1"}, Membership("a:1", 2, 1, "Slurm", [0])),
        ({**slurm(), **by_jax("b:1", 3, 2)}, Membership("b:1", 3, 2, "arguments or JAX_*")),
        ({**slurm(), "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "7"}, None),  # a batch script outside of srun
        (ompi(4), Membership("10.96.0.1:61441", 4, 3, "Open MPI", [1])),
    ],
)
def test_the_environment_tells_who_this_is(environ, environment, want):
    environ(environment)
    assert find() == want


@pytest.fixture
def tpu_vm(monkeypatch):
    """What JAX finds out on the virtual machine of a TPU."""
    from jax._src.clusters import cloud_tpu_cluster

    for module in (cloud_tpu_cluster, processes):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    metadata = {"MEGASCALE_COORDINATOR_ADDRESS": "", "MEGASCALE_NUM_SLICES": "", "MEGASCALE_SLICE_ID": ""}
    metadata |= {"agent-worker-number": "1", "worker-network-endpoints": "a:b:127.0.0.1,a:b:127.0.0.2,a:b:127.0.0.3"}
    told = "\n".join(f"{name}: '{value}'" for name, value in metadata.items())
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata.get(key, told), 200))
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        (gke("localhost"), None),
        (gke("127.0.0.1,127.0.0.2"), Membership("127.0.0.1:8482", 2, 1, "Cloud TPU on GKE")),
        (
            {
                **gke("127.0.0.3,127.0.0.4", 0),
                "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:99",
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_SLICE_ID": "1",
            },
            Membership("127.0.0.1:8482", 4, 2, "Cloud TPU on GKE"),
        ),
    ],
)
def test_a_tpu_tells_who_this_is(environ, tpu_vm, environment, want):
    environ(environment)
    assert find() == want


def test_only_the_first_launcher_is_asked(environ, tpu_vm):
    """Others may have to ask the network."""
    environ(slurm())
    tpu_vm.delenv("TPU_SKIP_MDS_QUERY")
    tpu_vm.setattr("jax._src.clusters.cloud_tpu_cluster.get_metadata", lambda key: 1 / 0)
    assert find().launcher == "Slurm"


def test_the_virtual_machine_of_a_tpu_tells_who_this_is(tpu_vm):
    tpu_vm.delenv("TPU_SKIP_MDS_QUERY")
    assert find() == Membership("127.0.0.1:8482", 3, 1, "Cloud TPU")


@pytest.mark.parametrize(
    ("environment", "bind", "message"),
    [
        (by_jax("localhost:1", 2, 1), None, None),
        ({**by_jax("localhost:1", 2, 1), **slurm()}, None, "coordinator_address localhost:1.*SLURM_STEP_NUM_NODES=2"),
        ({**by_jax("127.0.1.1:1", 2, 0), **slurm(0)}, None, "coordinator_address 127.0.1.1:1.*/etc/hosts"),
        ({**by_jax("[::1]:1", 2, 0), **slurm(0)}, None, r"coordinator_address \[::1\]:1"),
        ({**by_jax("10.0.0.1:1", 2, 0), **slurm(0)}, "127.0.0.1:1", "bind_address 127.0.0.1:1 is the loopback"),
        ({**by_jax("10.0.0.1:1", 2, 1), **slurm()}, "127.0.0.1:1", None),  # only process 0 listens
        ({**by_jax("10.0.0.1:1", 2, 0), **slurm(0)}, None, None),
        ({**by_jax("10.0.0.1:1", 2, 0), **slurm(0)}, "0.0.0.0:1", None),
        (slurm(0, "localhost", 1), None, None),
        (slurm(0, "localhost", 2), None, "SLURM_STEP_NUM_NODES=2"),
        ({**by_jax("localhost:1", 2, 0), **slurm(1)}, None, None),  # a launcher inside a task of Slurm's
        ({**by_jax("localhost:1", 4, 3), **ompi(4)}, None, None),
        ({**by_jax("localhost:1", 4, 3), **ompi(2)}, None, "OMPI_COMM_WORLD_LOCAL_SIZE=2 of 4"),
        ({**by_jax("localhost:1", 2, 1), **gke("a:8476,a:8477")}, None, None),
        ({**by_jax("localhost:1", 2, 1), **gke("a:8476,b:8476")}, None, "TPU_WORKER_HOSTNAMES=a:8476,b:8476"),
        (
            {**by_jax("localhost:1", 2, 1), **gke("a"), "MEGASCALE_NUM_SLICES": "2"},
            None,
            "TPU_WORKER_HOSTNAMES=a in 2 slices",
        ),
        ({**by_jax("localhost:1", 3, 1), **gke("a,b")}, None, None),
    ],
)
def test_a_loopback_address_is_refused_for_processes_on_other_hosts(environ, environment, bind, message):
    environ(environment)
    membership = find()
    if message is None:
        membership.check(bind or membership.bind_address)
    else:
        with pytest.raises(DistributionError, match=message):
            kdist.initialize(bind_address=bind)


def test_where_process_0_listens_is_asked_of_the_environment(environ):
    environ(by_jax("10.0.0.1:80", 2, 0))
    assert find().bind_address == "10.0.0.1:80"
    environ({"JAX_COORDINATOR_BIND_ADDRESS": "0.0.0.0:80"})
    assert find().bind_address == "0.0.0.0:80"
