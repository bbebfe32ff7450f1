from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sair.errors import WireError
from sair.kube.changes import Added, Change, Deleted, Malformed, Modified, Synced
from sair.kube.fold import Fold, Listing
from tests.sair.kube.objects import Setting, parse_setting, setting


def raw(name: str, value: int | str, version: int, uid: str = "u1") -> dict[str, Any]:
    return setting(name, value, namespace="ns", uid=uid, resourceVersion=str(version))


def folded(*objects: dict[str, Any], version: int) -> Fold[Setting]:
    fold = Fold(parse_setting)
    relist(fold, *objects, version=version)
    return fold


def relist(fold: Fold[Setting], *objects: dict[str, Any], version: int) -> list[Change[Setting]]:
    listing: Listing[Setting] = Listing()
    fold.collect(listing, map(msgspec.json.encode, objects))
    return fold.replace(listing, str(version))


def event(kind: str, object_: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": object_}


def test_the_first_list_adds_everything_and_then_says_that_it_is_all() -> None:
    fold = Fold(parse_setting)
    changes = relist(fold, raw("a", 1, 5), raw("b", 2, 7), version=9)
    assert changes == [Added("ns/a", Setting("a", 1), "5"), Added("ns/b", Setting("b", 2), "7"), Synced(2, "9")]
    assert fold.snapshot() == {"ns/a": Setting("a", 1), "ns/b": Setting("b", 2)}
    assert fold.resource_version == "9"


def test_a_second_list_tells_only_what_changed_and_what_vanished_first() -> None:
    fold = folded(raw("a", 1, 5), raw("b", 2, 6), raw("c", 3, 7), version=9)
    changes = relist(fold, raw("d", 4, 12), raw("a", 1, 5), raw("c", 9, 13), version=20)
    assert changes == [
        Deleted("ns/b", Setting("b", 2), Setting("b", 2), "20"),
        Added("ns/d", Setting("d", 4), "12"),
        Modified("ns/c", Setting("c", 9), Setting("c", 3), "13"),
        Synced(3, "20"),
    ]


def test_a_list_parses_only_versions_it_does_not_hold() -> None:
    parsed = []

    def counting(object_: dict[str, Any]) -> Setting:
        parsed.append(object_["metadata"]["name"])
        return parse_setting(object_)

    fold = Fold(counting)
    relist(fold, raw("a", 1, 5), raw("b", 2, 6), version=9)
    relist(fold, raw("a", 1, 5), raw("b", 3, 10), version=11)
    assert parsed == ["a", "b", "b"]


def test_an_item_of_a_list_without_a_name_is_counted_and_left_out() -> None:
    fold = Fold(parse_setting)
    relist(fold, raw("a", 1, 5), {"data": {}}, {"metadata": {"name": "b"}}, version=9)
    assert (list(fold.snapshot()), fold.parse_errors) == (["ns/a"], 2)


def test_a_parser_that_stumbles_over_an_odd_object_flags_it_too() -> None:
    fold = Fold(lambda object_: int(object_["data"]["value"]))
    listing: Listing[int] = Listing()
    fold.collect(listing, [msgspec.json.encode({"metadata": {"name": "a", "resourceVersion": "5"}, "data": None})])
    assert fold.replace(listing, "9")[0] == Malformed(
        "a", "TypeError(\"'NoneType' object is not subscriptable\")", None, "5"
    )


@pytest.mark.parametrize("how", ["list", "watch"])
def test_another_object_under_the_same_name_is_an_end_and_a_beginning(how: str) -> None:
    fold = folded(raw("a", 1, 5, uid="u1"), version=9)
    reborn = raw("a", 2, 12, uid="u2")
    changes = relist(fold, reborn, version=12)[:-1] if how == "list" else fold.apply(event("ADDED", reborn))
    assert changes == [Deleted("ns/a", Setting("a", 1), Setting("a", 1), "12"), Added("ns/a", Setting("a", 2), "12")]


def test_a_deletion_tells_the_final_state_and_the_one_before() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    assert fold.apply(event("DELETED", raw("a", 2, 10))) == [Deleted("ns/a", Setting("a", 2), Setting("a", 1), "10")]
    assert fold.snapshot() == {}


def test_events_that_are_known_already_change_nothing() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    modified = event("MODIFIED", raw("a", 2, 10))
    assert len(fold.apply(modified)) == 1
    assert fold.apply(modified) == []
    assert fold.apply(event("MODIFIED", raw("a", 1, 5))) == []
    fold.apply(event("DELETED", raw("a", 2, 11)))
    assert fold.apply(event("ADDED", raw("a", 1, 5))) == []
    assert fold.snapshot() == {}


def test_bookmarks_move_the_version_and_nothing_else() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    assert fold.apply(event("BOOKMARK", {"metadata": {"resourceVersion": "100"}})) == []
    assert fold.resource_version == "100"
    assert fold.snapshot() == {"ns/a": Setting("a", 1)}


def test_an_object_that_cannot_be_parsed_keeps_its_last_good_version_and_is_flagged() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    changes = fold.apply(event("MODIFIED", raw("a", "seven", 10)))
    assert changes == [Malformed("ns/a", "data.value: 'seven' is not allowed; expected digits", Setting("a", 1), "10")]
    assert fold.get("ns/a") == Setting("a", 1)
    assert (set(fold.malformed), fold.parse_errors) == ({"ns/a"}, 1)
    assert fold.apply(event("MODIFIED", raw("a", 7, 11))) == [Modified("ns/a", Setting("a", 7), Setting("a", 1), "11")]
    assert not fold.malformed


def test_an_object_that_was_never_well_formed_is_never_added_nor_deleted() -> None:
    fold = folded(version=9)
    assert fold.apply(event("ADDED", raw("a", "x", 10))) == [
        Malformed("ns/a", "data.value: 'x' is not allowed; expected digits", None, "10")
    ]
    assert fold.snapshot() == {}
    assert fold.apply(event("DELETED", raw("a", "x", 11))) == []
    assert not fold.malformed


def test_the_last_good_version_of_a_malformed_object_is_what_its_deletion_tells() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    fold.apply(event("MODIFIED", raw("a", "x", 10)))
    assert fold.apply(event("DELETED", raw("a", "x", 11))) == [Deleted("ns/a", Setting("a", 1), Setting("a", 1), "11")]


def test_a_list_is_the_truth_even_if_its_versions_went_back() -> None:
    fold = folded(raw("a", 5, 500), version=900)
    changes = relist(fold, raw("a", 1, 5), version=9)
    assert changes[0] == Modified("ns/a", Setting("a", 1), Setting("a", 5), "5")
    assert len(fold.apply(event("MODIFIED", raw("a", 2, 10)))) == 1


def test_versions_that_are_no_numbers_are_only_compared_for_equality() -> None:
    fold = folded(version=9)
    odd = setting("a", 1, namespace="ns", resourceVersion="abc")
    assert len(fold.apply(event("ADDED", odd))) == 1
    assert fold.apply(event("MODIFIED", odd)) == []


@pytest.mark.parametrize(
    "broken",
    [
        event("ADDED", {"metadata": {"name": "a"}}),
        event("ADDED", {"metadata": {"resourceVersion": "10"}}),
        event("ADDED", {}),
        event("ADDED", {"metadata": None}),
        event("BOOKMARK", {"metadata": {}}),
        event("RENAMED", raw("a", 1, 10)),
    ],
)
def test_an_event_that_is_none_is_an_error_and_changes_nothing(broken: dict[str, Any]) -> None:
    fold = folded(raw("a", 1, 5), version=9)
    with pytest.raises(WireError):
        fold.apply(broken)
    assert (fold.snapshot(), fold.resource_version) == ({"ns/a": Setting("a", 1)}, "9")


def test_a_snapshot_once_taken_never_changes() -> None:
    fold = folded(raw("a", 1, 5), version=9)
    before = fold.snapshot()
    assert fold.snapshot() is before
    fold.apply(event("DELETED", raw("a", 1, 10)))
    assert before == {"ns/a": Setting("a", 1)}


class AgainstTheServer(RuleBasedStateMachine):
    """A server's history, delivered with gaps, repetitions and lists in between; a consumer that only hears changes agrees with it."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 1
        self.births = 0
        self.server: dict[str, dict[str, Any]] = {}
        self.good: dict[str, Setting] = {}
        self.history: list[dict[str, Any]] = []
        self.delivered = 0
        self.fold = Fold(parse_setting)
        self.heard: dict[str, Setting] = {}
        self.live: set[str] = set()
        self._hear(relist(self.fold, version=1))

    names = st.sampled_from("abc")
    values = st.one_of(st.integers(0, 9), st.just("broken"))

    @rule(name=names, value=values)
    def write(self, name: str, value: int | str) -> None:
        self.version += 1
        old = self.server.get(name)
        if old is None:
            self.births += 1
        uid = old["metadata"]["uid"] if old else f"u{self.births}"
        self.server[name] = raw(name, value, self.version, uid)
        self.history.append(event("MODIFIED" if old else "ADDED", self.server[name]))

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name in self.server:
            self.version += 1
            old = self.server.pop(name)
            final = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
            self.history.append(event("DELETED", final))

    @rule(count=st.integers(1, 4))
    def watch(self, count: int) -> None:
        for item in self.history[self.delivered : self.delivered + count]:
            self._hear(self.fold.apply(item))
            self._note(item)
        self.delivered = min(len(self.history), self.delivered + count)

    @rule(back=st.integers(1, 5))
    def repeat(self, back: int) -> None:
        for item in self.history[max(0, self.delivered - back) : self.delivered]:
            assert self.fold.apply(item) == []

    @rule(page=st.integers(1, 3))
    def list_again(self, page: int) -> None:
        listing: Listing[Setting] = Listing()
        items = list(self.server.values())
        for start in range(0, len(items), page):
            self.fold.collect(listing, map(msgspec.json.encode, items[start : start + page]))
        changes = self.fold.replace(listing, str(self.version))
        assert changes[-1] == Synced(len(items), str(self.version))
        self._hear(changes)
        self.delivered = len(self.history)
        # What is malformed now keeps the version that was heard, if it is the same object.
        lived = {name: self.good[name] for name in self.good if name in self.server and self._same(name)}
        self.good = {}
        for name, object_ in self.server.items():
            text = object_["data"]["value"]
            if text.isdigit():
                self.good[name] = Setting(name, int(text))
            elif name in lived:
                self.good[name] = lived[name]
        self.uids = {name: object_["metadata"]["uid"] for name, object_ in self.server.items()}

    @invariant()
    def the_listener_agrees_with_the_store(self) -> None:
        assert self.heard == dict(self.fold.snapshot())

    @invariant()
    def the_store_agrees_with_what_the_server_had_at_that_point(self) -> None:
        assert {key.removeprefix("ns/"): value for key, value in self.fold.snapshot().items()} == self.good

    uids: Mapping[str, str] = {}

    def _same(self, name: str) -> bool:
        return bool(self.uids.get(name) == self.server[name]["metadata"]["uid"])

    def _note(self, item: dict[str, Any]) -> None:
        name, text = item["object"]["metadata"]["name"], item["object"]["data"]["value"]
        uids = dict(self.uids)
        if item["type"] == "DELETED":
            self.good.pop(name, None)
            uids.pop(name, None)
        else:
            uids[name] = item["object"]["metadata"]["uid"]
            if text.isdigit():
                self.good[name] = Setting(name, int(text))
        self.uids = uids

    def _hear(self, changes: list[Change[Setting]]) -> None:
        for change in changes:
            match change:
                case Added():
                    assert change.key not in self.heard
                    self.heard[change.key] = change.object
                case Modified():
                    assert self.heard[change.key] == change.old
                    self.heard[change.key] = change.object
                case Deleted():
                    assert self.heard.pop(change.key) == change.old
                case Malformed():
                    assert self.heard.get(change.key) == change.last_good
                case Synced():
                    pass


TestAgainstTheServer: Callable[..., Any] = AgainstTheServer.TestCase
