"""What a process of the mesh loads: each module takes memory of every board."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ALL_OF_THE_MESH = """
import importlib, pkgutil, picoedge.mesh
for module in pkgutil.walk_packages(picoedge.mesh.__path__, "picoedge.mesh."):
    importlib.import_module(module.name)
"""
A_WORKER = ALL_OF_THE_MESH + "import picoedge.cluster.worker, picoedge.engine.open"


def modules_after(script: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded when `script` has run."""
    script += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_a_worker_and_a_hub_load_no_asyncio() -> None:
    loaded = modules_after(A_WORKER)
    assert "numpy" in loaded
    assert not loaded & {"asyncio", "zmq.utils.monitor", "torch", "transformers", "zeroconf"}
    assert "cryptography" not in loaded  # before a stream is sealed


def test_a_planner_loads_no_socket() -> None:
    loaded = modules_after("import picoedge.planner.cluster_plan, picoedge.planner.locality")
    assert not loaded & {"zmq", "socket", "subprocess", "picoedge.mesh.group.links"}


@pytest.mark.parametrize("module", ["picoedge.daemon.service", "picoedge.mesh.node.node"])
def test_a_daemon_loads_neither_numpy_nor_asyncio(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert not loaded & {"numpy", "asyncio", "zmq.utils.monitor", "cryptography"}
