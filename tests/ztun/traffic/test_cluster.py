"""One destination under its policy: choice, limits, ejection, warm-up, locality."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from ztun.mesh.model import Locality, Workload
from ztun.traffic.cluster import Asker, Cluster, Member
from ztun.traffic.policy import (
    Balancing,
    LocalityPolicy,
    LocalityShare,
    OutlierPolicy,
    PoolLimits,
    TrafficPolicy,
    Warmup,
)

pytestmark = pytest.mark.unit

HERE = Locality("eu", "eu-1", "a")


def member(number: int, locality: Locality = HERE, capacity: int = 1, **labels: str) -> Member:
    uid = f"w{number}"
    workload = Workload(
        uid=uid, name=uid, namespace="default", locality=locality, capacity=capacity, labels=labels
    )
    return Member((f"10.0.0.{number}", 9000), workload)


def picked(
    cluster: Cluster, times: int, asker: Asker | None = None, now: float = 0.0, seed: int = 1
) -> Counter[str]:
    rng, found = random.Random(seed), Counter[str]()
    for _ in range(times):
        one = cluster.pick(asker or Asker(locality=HERE), now, rng)
        found[one.key[0] if one else "none"] += 1
    return found


def policy(balancing: Balancing, **fields: object) -> TrafficPolicy:
    return replace(TrafficPolicy(balancing=balancing), **fields)  # type: ignore[arg-type]


def test_round_robin_takes_turns_and_honours_capacity() -> None:
    even = Cluster(policy(Balancing.ROUND_ROBIN), [member(1), member(2), member(3)], 0)
    assert picked(even, 9) == {"10.0.0.1": 3, "10.0.0.2": 3, "10.0.0.3": 3}
    double = Cluster(policy(Balancing.ROUND_ROBIN), [member(1, capacity=2), member(2)], 0)
    assert picked(double, 9) == {"10.0.0.1": 6, "10.0.0.2": 3}


def test_round_robin_skips_what_was_tried_without_losing_its_turn() -> None:
    cluster = Cluster(policy(Balancing.ROUND_ROBIN), [member(1), member(2)], 0)
    rng, tried = random.Random(1), frozenset({("10.0.0.2", 9000)})
    assert cluster.pick(Asker(), 0, rng) == member(1)
    assert cluster.pick(Asker(), 0, rng, excluded=tried) == member(1)
    assert cluster.pick(Asker(), 0, rng) == member(2)


def test_round_robin_does_not_flood_an_endpoint_that_was_left_out_for_long() -> None:
    cluster = Cluster(policy(Balancing.ROUND_ROBIN), [member(1), member(2), member(3)], 0)
    rng, away = random.Random(1), frozenset({("10.0.0.3", 9000)})
    for _ in range(100):
        cluster.pick(Asker(), 0, rng, excluded=away)
    assert picked(cluster, 9) == {"10.0.0.1": 3, "10.0.0.2": 3, "10.0.0.3": 3}


def test_least_request_prefers_the_idle_endpoint() -> None:
    cluster = Cluster(policy(Balancing.LEAST_REQUEST), [member(1), member(2)], 0)
    for _ in range(5):
        cluster.taken(("10.0.0.1", 9000))
    assert picked(cluster, 20) == {"10.0.0.2": 20}
    for _ in range(5):
        cluster.closed(("10.0.0.1", 9000))
    assert set(picked(cluster, 50)) == {"10.0.0.1", "10.0.0.2"}


def test_a_connection_counts_from_the_attempt_to_the_end() -> None:
    limited = policy(Balancing.RANDOM, pool=PoolLimits(max_connections=1))
    cluster = Cluster(limited, [member(1)], 0)
    cluster.taken(("10.0.0.1", 9000))
    assert cluster.full
    cluster.opened(("10.0.0.1", 9000))
    cluster.update(limited, [member(2)], 0)
    assert cluster.active == 1
    cluster.closed(("10.0.0.1", 9000))
    assert not cluster.full


def test_a_hash_table_is_made_again_only_for_other_endpoints() -> None:
    hashed = policy(Balancing.MAGLEV, hash_source_ip=True, table_size=101)
    cluster = Cluster(hashed, [member(1), member(2)], 0)
    before = [picked(cluster, 1, Asker(ip=f"10.1.0.{at}")) for at in range(20)]
    cluster.update(replace(hashed, pool=PoolLimits(max_connections=5)), [member(2), member(1)], 0)
    assert [picked(cluster, 1, Asker(ip=f"10.1.0.{at}")) for at in range(20)] == before
    cluster.update(hashed, [member(3)], 0)
    assert picked(cluster, 1, Asker(ip="10.1.0.1")) == {"10.0.0.3": 1}


def test_random_follows_capacity() -> None:
    cluster = Cluster(policy(Balancing.RANDOM), [member(1, capacity=4), member(2)], 0)
    found = picked(cluster, 2000)
    assert 0.75 < found["10.0.0.1"] / 2000 < 0.85


@pytest.mark.parametrize("balancing", [Balancing.RING_HASH, Balancing.MAGLEV])
def test_a_client_keeps_its_endpoint_when_others_leave(balancing: Balancing) -> None:
    hashed = policy(balancing, hash_source_ip=True, table_size=1021)
    members = [member(number) for number in range(1, 6)]
    cluster = Cluster(hashed, members, 0)
    clients = [Asker(ip=f"10.1.{number}.7") for number in range(200)]
    rng = random.Random(1)

    def choices() -> list[str]:
        found = [cluster.pick(client, 0, rng) for client in clients]
        return [one.key[0] for one in found if one is not None]

    before = choices()
    assert before == choices()
    assert set(before) == {one.key[0] for one in members}
    cluster.update(hashed, members[:-1], 0)
    moved = sum(
        1 for old, new in zip(before, choices(), strict=True) if old != new and old != members[-1].key[0]
    )
    assert moved <= 20  # Ketama moves nobody else, Maglev a few


def test_an_ejected_endpoint_moves_only_its_own_clients() -> None:
    hashed = policy(Balancing.RING_HASH, hash_source_ip=True, outlier=OutlierPolicy(consecutive_errors=1))
    cluster = Cluster(hashed, [member(number) for number in range(1, 5)], 0)
    rng, clients = random.Random(1), [Asker(ip=f"10.1.0.{number}") for number in range(100)]
    before = [cluster.pick(client, 0, rng) for client in clients]
    assert cluster.failed(("10.0.0.1", 9000), 0)
    for old, client in zip(before, clients, strict=True):
        new = cluster.pick(client, 1, rng)
        assert old is not None
        assert new is not None
        assert new.key[0] != "10.0.0.1"
        assert new is old or old.key[0] == "10.0.0.1"


def test_connections_above_the_limit_are_refused() -> None:
    cluster = Cluster(TrafficPolicy(pool=PoolLimits(max_connections=2)), [member(1)], 0)
    assert not cluster.full
    cluster.taken(("10.0.0.1", 9000))
    cluster.taken(("10.0.0.1", 9000))
    assert cluster.full
    cluster.closed(("10.0.0.1", 9000))
    assert not cluster.full
    assert cluster.active == 1


def test_an_endpoint_without_capacity_takes_no_connections() -> None:
    cluster = Cluster(policy(Balancing.ROUND_ROBIN), [member(1, capacity=0), member(2)], 0)
    assert picked(cluster, 5) == {"10.0.0.2": 5}
    cluster.update(TrafficPolicy(), [member(1, capacity=0)], 0)
    assert picked(cluster, 1) == {"none": 1}


def test_nothing_is_picked_when_everything_was_tried() -> None:
    cluster = Cluster(TrafficPolicy(), [member(1)], 0)
    tried = frozenset({("10.0.0.1", 9000)})
    assert cluster.pick(Asker(), 0, random.Random(1), excluded=tried) is None


def test_a_new_endpoint_warms_up() -> None:
    warming = policy(Balancing.ROUND_ROBIN, warmup=Warmup(100.0, minimum_percent=10.0))
    cluster = Cluster(warming, [member(1)], 0)
    cluster.update(warming, [member(1), member(2)], 1000)
    young = picked(cluster, 110, now=1000)
    assert 5 <= young["10.0.0.2"] <= 15
    half = picked(cluster, 150, now=1050)
    assert 40 <= half["10.0.0.2"] <= 60
    grown = picked(cluster, 100, now=1100)
    assert 45 <= grown["10.0.0.2"] <= 55


def test_the_nearest_endpoints_are_used_until_they_fail() -> None:
    far = Locality("eu", "eu-2", "a")
    outlier = OutlierPolicy(consecutive_errors=1, max_ejection_percent=100)
    cluster = Cluster(TrafficPolicy(outlier=outlier), [member(1), member(2, far)], 0)
    assert picked(cluster, 50) == {"10.0.0.1": 50}
    assert cluster.failed(("10.0.0.1", 9000), 0)
    assert picked(cluster, 50, now=1) == {"10.0.0.2": 50}
    assert picked(cluster, 50, now=31) == {"10.0.0.1": 50}


def test_without_outlier_detection_locality_is_not_considered() -> None:
    cluster = Cluster(policy(Balancing.ROUND_ROBIN), [member(1), member(2, Locality("us"))], 0)
    assert picked(cluster, 10) == {"10.0.0.1": 5, "10.0.0.2": 5}


def test_failover_goes_to_the_named_region_first() -> None:
    setting = LocalityPolicy(failover=(("eu", "us"),))
    outlier = OutlierPolicy(consecutive_errors=1, max_ejection_percent=100)
    members = [member(1), member(2, Locality("asia")), member(3, Locality("us"))]
    cluster = Cluster(TrafficPolicy(outlier=outlier, locality=setting), members, 0)
    cluster.failed(("10.0.0.1", 9000), 0)
    assert picked(cluster, 20, now=1) == {"10.0.0.3": 20}


def test_failover_priority_compares_labels_in_order() -> None:
    setting = LocalityPolicy(failover_priority=("rack", "row=1"))
    outlier = OutlierPolicy(consecutive_errors=1, max_ejection_percent=100)
    members = [member(1, rack="a", row="1"), member(2, rack="a", row="2"), member(3, rack="b", row="1")]
    cluster = Cluster(TrafficPolicy(outlier=outlier, locality=setting), members, 0)
    asker = Asker(labels={"rack": "a"})
    assert picked(cluster, 20, asker) == {"10.0.0.1": 20}
    cluster.failed(("10.0.0.1", 9000), 0)
    assert picked(cluster, 20, asker, now=1) == {"10.0.0.2": 20}


def test_distribute_gives_each_locality_its_share() -> None:
    setting = LocalityPolicy(distribute=(LocalityShare("eu/*", (("eu/*", 80), ("us/*", 20))),))
    cluster = Cluster(TrafficPolicy(locality=setting), [member(1), member(2, Locality("us", "us-1"))], 0)
    found = picked(cluster, 2000)
    assert 0.76 < found["10.0.0.1"] / 2000 < 0.84


def test_panic_uses_ejected_endpoints_when_too_few_are_left() -> None:
    outlier = OutlierPolicy(consecutive_errors=1, max_ejection_percent=100, min_health_percent=60)
    cluster = Cluster(policy(Balancing.ROUND_ROBIN, outlier=outlier), [member(1), member(2)], 0)
    cluster.failed(("10.0.0.1", 9000), 0)
    assert set(picked(cluster, 20, now=1)) == {"10.0.0.1", "10.0.0.2"}
