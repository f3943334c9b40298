"""Room on the host is bounded, and comes back."""

import pytest

from jaxinfer.pages import Allocator, Group, SwapSpace

SIZE = 4


def filled(allocator, positions):
    holding, _ = allocator.enter((), 0)
    assert allocator.extend(holding, 0, positions) is not None
    return holding


def test_room_is_taken_for_what_is_written_and_given_back():
    allocator = Allocator(SIZE, [Group(20, 10), Group(20, 5, window=5)])
    holding = filled(allocator, 16)
    allocator.extend(holding, 16, 25)  # two blocks for what may come
    swap = SwapSpace(1000, (10, 7))
    move = swap.park(holding, 18, SIZE)
    assert [len(p) for p in move.pages] == [5, 2]  # blocks 0 .. 4, and 3, 4
    assert move.parked.size == swap.used == swap.bytes_out == 5 * 10 + 2 * 7
    back = swap.fetch(move.parked, ((1, 2, -1, 3, 4), (5, -1)))
    assert not back.out
    assert swap.bytes_in == 4 * 10 + 7
    assert (swap.used, swap.outs, swap.ins) == (0, 1, 1)


def test_a_full_space_takes_no_more(rng):
    allocator = Allocator(SIZE, [Group(20, 10)])
    swap = SwapSpace(50, (10,))
    first = swap.park(filled(allocator, 13), 13, SIZE)
    assert swap.park(filled(allocator, 5), 5, SIZE) is None
    assert swap.park(filled(allocator, 4), 4, SIZE) is not None
    assert swap.used == 50
    swap.drop(first.parked)
    assert swap.used == 10


@pytest.mark.parametrize("share", [True, False])
def test_what_can_be_found_is_not_copied_back(share):
    allocator = Allocator(SIZE, [Group(8, 8)], share=share)
    names = [bytes([i]) for i in range(4)]
    holding = filled(allocator, 14)
    allocator.name(holding, names, 3)
    parked = SwapSpace(100, (1,)).park(holding, 14, SIZE).parked
    before = list(holding.pages[0])
    allocator.leave(holding)
    other = filled(allocator, 4 * 6)  # takes the free ones and the named one given back first
    assert not allocator.room_again(names, parked, 15, 0)
    allocator.leave(other)
    assert allocator.room_again(names, parked, 15, 4)
    assert not allocator.room_again(names, parked, 15, 5)
    again, changes, into = allocator.enter_again(names, parked)
    assert [page == -1 for page in into[0]] == [share, share, False, False]
    if share:
        assert again.pages[0][:2] == before[:2]
    assert changes == [(0, i, page) for i, page in enumerate(again.pages[0])]
    allocator.check([again])


def test_a_size_below_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 0 bytes, got -1"):
        SwapSpace(-1, ())
