"""One SLURM cluster for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from cluster import Cluster, missing
from jobs import Jobs


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if absent := missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have SLURM; {', '.join(absent)} is not installed")
        pytest.skip(f"needs {', '.join(absent)}: Debian's slurmctld slurmd slurm-client munge iproute2")
    grouped = any(item.nodeid.endswith("@slurm") for item in request.session.items)
    if os.environ.get("PYTEST_XDIST_WORKER") and not grouped:
        pytest.fail("tests of one xdist_group must stay in one process; pytest-xdist spread them: constraints.txt")
    with Cluster() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    runs.write_data(folder, rows=40)
    return folder


@pytest.fixture
def jobs(cluster: Cluster, place: Path) -> Iterator[Jobs]:
    yield Jobs(cluster, place)
    cluster.restore()
