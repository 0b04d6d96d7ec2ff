"""Pods of three releases under load: no request fails for the schema, and nothing goes that a pod still maps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.harness import processes
from tests.harness.pods import GRACE, LEASE, Deployment
from tests.harness.servers import wait_until

pytestmark = pytest.mark.slow

#: Longer than any row would hold that nobody renews, seconds.
LONG = 2 * LEASE + GRACE
#: How long the step may take to notice and to run, beyond the row and the grace: it looks about once a lease.
NOTICED = 2 * LEASE + 4


@pytest.fixture
def deployment(url: URL, tmp_path: Path) -> Iterator[Deployment]:
    """With two pods of the first release, and load."""
    found = Deployment(url, tmp_path)
    with found.load():
        found.start("1")
        found.start("1")
        yield found
    assert found.failures == []


def gone(deployment: Deployment, since: float, how: str) -> None:
    """Wait until the column is gone, in good time after a moment."""
    wait_until(lambda: not deployment.has_fax(), f"the step waits: {deployment.status()}", LEASE + GRACE + NOTICED)
    seconds = time.monotonic() - since
    dialect = deployment.url.get_backend_name()
    processes.results.append(f"contract step on {dialect}: {seconds:.1f} s after the last old pod was {how}")
    assert seconds < LEASE + GRACE + NOTICED


def test_a_rolling_deploy(deployment: Deployment) -> None:
    """One pod after the other is replaced by the next release; a deploy is undone meanwhile."""
    first, second = deployment.pods
    third = deployment.start("2")
    deployment.stop(first)
    fourth = deployment.start("2")
    fifth = deployment.start("3")
    wait_until(lambda: "contract" in deployment.status())
    assert deployment.stays(LONG), "pods of release 1 and 2 map it"
    deployment.stop(second)
    deployment.stop(third)
    assert deployment.stays(LONG), "one of release 2 still does"
    again = deployment.start("1")  # the deploy is undone
    deployment.stop(fourth)
    assert deployment.stays(LONG), "it came back"
    (waits,) = deployment.status()["contract"]
    assert waits["migration"] == "drop_fax"
    assert waits["waits"].startswith("waits for 1 instance of release 1, last seen "), waits
    deployment.start("3")
    since = time.monotonic()
    deployment.stop(again)
    gone(deployment, since, "ended")
    wait_until(lambda: "contract" not in deployment.status())
    served = dict(deployment.served)
    wait_until(lambda: deployment.served["3"] > served["3"] + 20)
    assert min(deployment.served.values()) > 10, deployment.served
    assert fifth.ready


def test_a_killed_pod_delays_it_by_its_row_alone(deployment: Deployment) -> None:
    first, second = deployment.pods
    deployment.start("3")
    deployment.stop(first)
    wait_until(lambda: "contract" in deployment.status())
    assert deployment.stays(LONG)
    since = time.monotonic()
    deployment.stop(second, signal.SIGKILL)
    gone(deployment, since, "killed")


def test_a_stopped_pod_serves_nothing_that_it_lacks(deployment: Deployment) -> None:
    """Past its row it asks first: it serves again while its column is there, and says why when it is not."""
    first, second = deployment.pods
    deployment.start("3")
    wait_until(lambda: "contract" in deployment.status())

    def pause() -> None:
        deployment.pods.remove(second)
        second.send(signal.SIGSTOP)

    pause()
    assert deployment.stays(LONG), "the first pod maps it"
    os.kill(second.process, signal.SIGCONT)
    assert second.ask() == (200, "1")
    second.taken = False
    deployment.pods.append(second)
    deployment.stop(first)
    assert deployment.stays(LONG), "it is as alive as before"
    since = time.monotonic()
    pause()
    gone(deployment, since, "stopped")
    os.kill(second.process, signal.SIGCONT)
    answers = [second.ask()]

    def said() -> bool:
        """At first the step may be under way still, which is said until the pod asks again."""
        answers.append(second.ask())
        return "This release needs what a later one has taken away from the database." in answers[-1][1]

    wait_until(said)
    assert {status for status, _ in answers} == {503}, answers
    assert not second.ready
    assert "Release 1 uses people.fax" in second.log.read_text()
