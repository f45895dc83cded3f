from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.unit

DUMPABLE = """
import ctypes
def dumpable():
    return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DUMPABLE + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_core_is_dumped_of_a_process_that_holds_keys() -> None:
    code = """
    from certs.memory import forbid_dumps
    print(dumpable(), forbid_dumps(), dumpable())
    """
    assert run(code) == "1 True 0"


def test_proxies_of_every_role_forbid_it() -> None:
    code = """
    from ztun.proxy.process import run_process
    async def work():
        return dumpable()
    print(run_process(work))
    """
    assert run(code) == "0"
