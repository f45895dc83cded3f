from __future__ import annotations

import pytest

from ztun.telemetry.readiness import Readiness

pytestmark = pytest.mark.unit


def test_ready_when_every_task_is_done() -> None:
    readiness = Readiness()
    assert readiness.ready
    state, proxy = readiness.register("state manager"), readiness.register("proxy")
    assert readiness.pending == ("proxy", "state manager")
    state.done()
    state.done()
    assert readiness.pending == ("proxy",)
    proxy.done()
    assert readiness.ready


def test_a_task_that_fails_stays_pending() -> None:
    readiness = Readiness()
    with pytest.raises(ValueError, match="broken"), readiness.register("proxy"):
        raise ValueError("broken")
    assert readiness.pending == ("proxy",)
    with readiness.register("proxy"):
        pass
    assert readiness.ready
