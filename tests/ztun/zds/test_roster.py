"""Which pods are served: every event of a conversation with an agent, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ztun.errors import ZdsError
from ztun.zds.messages import AddWorkload, DelWorkload, KeepWorkload, SnapshotSent
from ztun.zds.roster import Action, Answer, GiveUp, HangUp, Phase, Release, Roster, Start, Stop

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Namespace:
    """An open namespace: two with the same inode are the same one, opened twice."""

    inode: int
    handle: int = 0

    @property
    def key(self) -> tuple[int, int]:
        return (4, self.inode)


A, B = AddWorkload("uid-a", "a", "ns", "sa"), AddWorkload("uid-b", "b", "ns", "sa")
HERE, AGAIN, ELSEWHERE = Namespace(1), Namespace(1, handle=1), Namespace(2)
OK = Answer()


class Proxy:
    """Does what a roster says and keeps what it did. Names in ``broken`` cannot be started."""

    def __init__(self) -> None:
        self.roster: Roster[Namespace] = Roster()
        self.broken: set[str] = set()
        self.serving: dict[str, Namespace] = {}
        self.starts: list[str] = []
        self.released: list[Namespace] = []
        self.answers: list[str] = []
        self.ends: list[HangUp | GiveUp] = []

    def do(self, actions: list[Action[Namespace]]) -> None:
        for action in actions:
            if isinstance(action, Start):
                uid = action.pod.uid
                assert uid not in self.serving, "two proxies for one pod"
                self.starts.append(uid)
                if uid in self.broken:
                    self.do(self.roster.not_started(action.pod, action.namespace, "no luck"))
                else:
                    self.serving[uid] = action.namespace
                    self.do(self.roster.started(action.pod, action.namespace))
            elif isinstance(action, Stop):
                del self.serving[action.uid]
            elif isinstance(action, Release):
                self.released.append(action.namespace)
            elif isinstance(action, Answer):
                self.answers.append(action.error)
            else:
                self.ends.append(action)

    def connect(self) -> None:
        self.do(self.roster.connected())

    def add(self, pod: AddWorkload, namespace: Namespace) -> str:
        self.do(self.roster.added(pod, namespace))
        return self.answers[-1]

    def ask(self, request: KeepWorkload | DelWorkload | SnapshotSent) -> str:
        before = len(self.answers)
        self.do(self.roster.asked(request))
        assert len(self.answers) == before + 1, "each request is answered once"
        return self.answers[-1]


@pytest.fixture
def proxy() -> Proxy:
    """Connected to an agent that has not named anybody yet."""
    proxy = Proxy()
    proxy.connect()
    return proxy


def test_an_added_pod_is_served_and_then_acknowledged() -> None:
    roster: Roster[Namespace] = Roster()
    roster.connected()
    assert roster.added(A, HERE) == [Start(A, HERE)]
    assert roster.started(A, HERE) == [OK]
    assert roster.asked(SnapshotSent()) == [OK]
    assert roster.ready


def test_not_ready_before_the_snapshot_and_without_an_agent(proxy: Proxy) -> None:
    assert not Roster().ready
    proxy.add(A, HERE)
    assert not proxy.roster.ready
    proxy.ask(SnapshotSent())
    assert proxy.roster.ready
    proxy.roster.disconnected()
    assert not proxy.roster.ready
    assert proxy.serving == {"uid-a": HERE}


def test_the_same_pod_in_the_same_namespace_again_changes_nothing(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    assert proxy.add(A, AGAIN) == ""
    assert (proxy.starts, proxy.serving, proxy.released) == (["uid-a"], {"uid-a": HERE}, [AGAIN])


def test_the_same_pod_in_another_namespace_takes_its_place(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    assert proxy.add(A, ELSEWHERE) == ""
    assert proxy.serving == {"uid-a": ELSEWHERE}


def test_the_same_pod_under_another_account_takes_its_place(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    other = AddWorkload("uid-a", "a", "ns", "another")
    assert proxy.roster.added(other, AGAIN) == [Stop("uid-a"), Start(other, AGAIN)]


def test_a_pod_that_cannot_be_started_is_refused_and_tried_again(proxy: Proxy) -> None:
    proxy.broken.add("uid-a")
    assert proxy.add(A, HERE) == "failure to start proxy : no luck"
    proxy.ask(SnapshotSent())
    assert proxy.roster.pending == (A,)
    assert not proxy.roster.ready
    proxy.do(proxy.roster.retry())
    assert proxy.roster.pending == (A,)
    proxy.broken.clear()
    answers = len(proxy.answers)
    proxy.do(proxy.roster.retry())
    assert (proxy.serving, proxy.roster.pending, proxy.roster.ready) == ({"uid-a": HERE}, (), True)
    assert len(proxy.answers) == answers, "nobody asked"
    assert proxy.starts == ["uid-a"] * 3


def test_a_pending_pod_that_is_added_again_is_started_with_the_latest_namespace(proxy: Proxy) -> None:
    proxy.broken.add("uid-a")
    proxy.add(A, HERE)
    proxy.broken.clear()
    assert proxy.add(A, ELSEWHERE) == ""
    assert (proxy.serving, proxy.released, proxy.roster.pending) == ({"uid-a": ELSEWHERE}, [HERE], ())
    assert proxy.roster.retry() == []


def test_a_pending_pod_that_is_deleted_is_not_tried_again(proxy: Proxy) -> None:
    proxy.ask(SnapshotSent())
    proxy.broken.add("uid-a")
    proxy.add(A, HERE)
    assert proxy.ask(DelWorkload("uid-a")) == ""
    assert (proxy.roster.retry(), proxy.released, proxy.roster.ready) == ([], [HERE], True)


def test_a_deleted_pod_is_stopped_at_once(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    proxy.add(B, ELSEWHERE)
    proxy.ask(SnapshotSent())
    assert proxy.roster.asked(DelWorkload("uid-a")) == [Stop("uid-a"), OK]


def test_deleting_nobody_is_no_error(proxy: Proxy) -> None:
    proxy.ask(SnapshotSent())
    assert proxy.ask(DelWorkload("uid-x")) == ""


def test_a_pod_deleted_before_the_end_of_the_snapshot_goes_with_it(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    assert proxy.ask(DelWorkload("uid-a")) == ""
    assert proxy.serving == {"uid-a": HERE}
    proxy.ask(SnapshotSent())
    assert proxy.serving == {}


def test_added_deleted_and_added_within_a_snapshot_is_one_proxy(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    proxy.ask(DelWorkload("uid-a"))
    proxy.add(A, AGAIN)
    proxy.ask(SnapshotSent())
    assert (proxy.starts, proxy.serving) == (["uid-a"], {"uid-a": HERE})


def test_who_is_not_named_in_a_later_snapshot_goes(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    proxy.add(B, ELSEWHERE)
    proxy.ask(SnapshotSent())
    proxy.roster.disconnected()
    proxy.connect()
    proxy.add(B, ELSEWHERE)
    assert set(proxy.serving) == {"uid-a", "uid-b"}
    proxy.ask(SnapshotSent())
    assert set(proxy.serving) == {"uid-b"}
    assert proxy.starts == ["uid-a", "uid-b"]


def test_who_is_kept_stays(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    proxy.ask(SnapshotSent())
    proxy.roster.disconnected()
    proxy.connect()
    assert proxy.ask(KeepWorkload("uid-a")) == ""
    proxy.ask(SnapshotSent())
    assert proxy.serving == {"uid-a": HERE}


def test_pending_pods_are_forgotten_when_an_agent_comes_again(proxy: Proxy) -> None:
    proxy.broken.add("uid-a")
    proxy.add(A, HERE)
    proxy.roster.disconnected()
    assert proxy.roster.retry() == []
    proxy.connect()
    assert (proxy.roster.pending, proxy.released) == ((), [HERE])


def test_a_descriptor_that_is_no_namespace_is_refused_and_changes_nothing(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    proxy.ask(SnapshotSent())
    proxy.connect()
    assert proxy.roster.unusable(A, "it is a file") == [Answer("it is a file")]
    proxy.ask(SnapshotSent())
    assert proxy.serving == {"uid-a": HERE}, "it was named"


@pytest.mark.parametrize(
    ("request_", "code"), [(KeepWorkload("uid-a"), "zds_late_keep"), (SnapshotSent(), "zds_second_snapshot")]
)
def test_what_must_not_come_after_the_snapshot_ends_the_proxy(
    proxy: Proxy, request_: KeepWorkload | SnapshotSent, code: str
) -> None:
    proxy.ask(SnapshotSent())
    answer, end = proxy.roster.asked(request_)
    assert isinstance(answer, Answer)
    assert answer.error
    assert isinstance(end, GiveUp)
    assert end.reason.code == code


def test_what_makes_no_sense_is_answered_and_hung_up_on(proxy: Proxy) -> None:
    proxy.add(A, HERE)
    error = ZdsError("zds_malformed", "nonsense")
    assert proxy.roster.not_understood(error) == [Answer("nonsense"), HangUp(error)]
    assert proxy.serving == {"uid-a": HERE}


def test_the_end_lets_go_of_pending_namespaces(proxy: Proxy) -> None:
    proxy.broken.add("uid-a")
    proxy.add(A, HERE)
    assert proxy.roster.closed() == [Release(HERE)]
    assert proxy.roster.phase is Phase.DISCONNECTED
