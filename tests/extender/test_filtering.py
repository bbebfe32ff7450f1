"""Which nodes are left, and how the reasons read."""

from __future__ import annotations

from collections.abc import Sequence

from extender.card import CardView
from extender.filtering import NO_INVENTORY, filter_nodes
from tests.extender.builders import need, view


def split(
    nodes: dict[str, Sequence[CardView]], milli: int = 500, memory: int = 0
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    result = filter_nodes(nodes, need(milli, memory), lambda name: nodes[name])
    reasons = {name: _detail(text) for name, text in result.failed.items()}
    return result.nodes, reasons, result.unresolvable


def _detail(reason: str) -> str:
    opening = "node(s) without a GPU with room ("
    return reason[len(opening) : -1] if reason.startswith(opening) else reason


def test_a_node_with_one_card_that_fits_is_left() -> None:
    assert split({"a": [view(0, 100), view(1, 500)], "b": [view(0, 1000)]}) == (["a", "b"], {}, {})


def test_a_full_node_says_what_it_has_of_what_is_needed() -> None:
    assert split({"a": [view(0, 300, 12_000)]}, 500, 16_000)[1] == {
        "a": "gpu 0: 0.3 of 0.5 free, 12000Mi of 16000Mi free"
    }


def test_what_is_kept_for_raises_is_said() -> None:
    assert split({"a": [view(0, 300, reserved_milli=200)]})[1] == {
        "a": "gpu 0: 0.3 of 0.5 free (0.2 kept for waiting raises)"
    }


def test_the_closest_cards_come_first_and_the_rest_is_counted() -> None:
    node = [view(0, 100), view(1, 400), view(2, 200), view(3, 0)]

    assert split({"a": node})[1] == {"a": "gpu 1: 0.4 of 0.5 free; gpu 2: 0.2 of 0.5 free; 2 others are no closer"}


def test_a_card_with_the_share_but_not_the_memory_does_not_fit() -> None:
    failed = split({"a": [view(0, 1000, 1_000), view(1, 100, 16_000)]}, 500, 8_000)[1]

    assert failed == {
        "a": "gpu 1: 0.1 of 0.5 free, 16000Mi of 8000Mi free; gpu 0: 1 of 0.5 free, 1000Mi of 8000Mi free"
    }


def test_nodes_where_nothing_that_leaves_would_help_are_told_apart() -> None:
    nodes, failed, unresolvable = split({"none": [], "small": [view(0)]}, 500, 20_000)

    assert (nodes, failed) == ([], {})
    assert unresolvable == {
        "none": NO_INVENTORY,
        "small": "node(s) whose largest GPU has 16000Mi of the 20000Mi needed",
    }


def test_many_full_nodes_share_one_reason_so_that_the_scheduler_counts_them() -> None:
    failed = split({f"n{i}": [view(0, i)] for i in range(20)}, 500, 4_000)[1]

    assert set(failed.values()) == {"node(s) without a GPU with room for 0.5 and 4000Mi"}
