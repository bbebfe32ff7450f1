"""Who scales what, as values."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.sharding import Members, fair_share, lease_of, shard_of, surplus

NAMES = st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=20)


@given(st.integers(1, 16), NAMES)
def test_all_shards_are_shared_out_and_nobody_has_two_more_than_another(shards: int, members: set[str]) -> None:
    shares = [fair_share(shards, members, each) for each in members]
    assert sum(shares) == shards
    assert max(shares) - min(shares) <= 1


def test_who_is_not_listed_yet_counts_itself() -> None:
    assert fair_share(4, {"a"}, "b") == 2
    assert fair_share(4, set(), "b") == 4


def test_the_shard_of_a_namespace_never_changes_and_namespaces_spread() -> None:
    assert [shard_of(name, 4) for name in ("default", "team-a", "team-b", "ml")] == [1, 0, 2, 0]
    counts = Counter(shard_of(f"team-{number}", 8) for number in range(4000))
    assert counts.keys() == set(range(8))
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert shard_of("anything", 1) == 0


def test_what_is_too_many_is_given_away_the_same_ones_each_time() -> None:
    assert surplus({3, 0, 7}, 1) == (3, 7)
    assert surplus({3}, 1) == ()
    assert lease_of("sair-controller", 3) == "sair-controller-3"


def test_who_is_not_heard_of_for_a_while_lives_no_more_whatever_its_clock_says() -> None:
    members = Members.none().see('{"a": 5, "b": 900000}', 100.0)
    assert members.living(100.0, 15.0) == {"a", "b"}
    members = members.see('{"a": 6, "b": 900000}', 110.0)
    assert members.living(115.1, 15.0) == {"a"}
    assert members.written("me", 115.1, 15.0) == '{"a":6,"me":1}'
    assert members.without("a") == '{"b":900000}'
    # One that comes back, even with a smaller number, lives.
    assert members.see('{"a": 6, "b": 1}', 120.0).living(120.0, 15.0) == {"a", "b"}


@pytest.mark.parametrize("text", [None, 7, "", "[]", "{", '{"a": "x"}', "[" * 100_000, "x" * 20_000, '{"a": null}'])
def test_an_annotation_that_makes_no_sense_counts_as_nobody(text: object) -> None:
    assert Members.none().see(text, 1.0).living(1.0, 15.0) == set()
