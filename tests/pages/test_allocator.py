"""A sequence has in every group what its tokens look back on, and shares what holds the same."""

import pytest

from jaxinfer.pages import Allocator, Group, names

SIZE = 4


def named(ids, salt=""):
    found = []
    names.extend(found, names.root(salt), ids, SIZE)
    return found


def walk(allocator, ids, steps, blocks=0, known=None):
    """A sequence that grows over ids: its holding."""
    known = named(ids) if known is None else known
    holding, _ = allocator.enter(known, blocks)
    at = blocks * SIZE
    for count in steps:
        assert allocator.extend(holding, at, at + count) is not None
        at += count
        allocator.name(holding, known, at // SIZE)
    return holding


def test_names_tell_tokens_salts_variants_and_what_came_before():
    ids = list(range(12))
    assert named(ids)[:2] == named(ids[:11])
    assert len(named(ids)) == 3
    others = [named([*range(4, 8), *range(4)]), named(ids, "b"), named([99, *ids[1:]])]
    assert len({*named(ids), *(name for other in others for name in other)}) == 3 + 2 + 3 + 3
    assert names.root("", 1) != names.root("")
    assert names.root("1:x") != names.root("x", 1)
    grown = named(ids[:5])
    names.extend(grown, names.root(""), ids[4:], SIZE)
    assert grown == named(ids)


def test_a_prompt_begins_where_every_group_can_serve_it():
    """A window of 6 needs the two blocks before a length; the full group all of them."""
    allocator = Allocator(SIZE, [Group(20, 16), Group(20, 4, window=6)])
    ids = list(range(30))
    allocator.leave(walk(allocator, ids, [5, 5, 5, 5, 5]))
    known = named(ids)
    assert allocator.hit(known) == 6
    assert allocator.hit(known[:3]) == 3
    assert allocator.hit(named([0, 1, 2, 3, 9, *ids])) == 1
    assert allocator.hit(named(ids, "other")) == 0
    window = allocator.pools[1]
    page = window.find(known[4])  # take one of the window's away
    taken = window.acquire(window.free - window.kept)
    while window.find(known[4]) is not None:
        taken += window.acquire(1)
    assert page in taken
    there = [window.find(name) is not None for name in known[:6]]
    best = max(n for n in range(7) if all(there[max(0, n * SIZE - 5) // SIZE : n]))
    assert best < 6
    assert allocator.hit(known) == best


def test_random_sequences_hold_what_they_look_back_on_and_share_only_the_same(rng):
    groups = [Group(30, 16), Group(24, 5, window=7), Group(24, 16, window=7)]
    allocator = Allocator(SIZE, groups)
    written = [{} for _ in groups]  # page -> the tokens up to its end, as a device would write them
    alive = []
    for _ in range(600):
        if len(alive) < 4 and rng.random() < 0.4:
            ids = rng.integers(0, 2, int(rng.integers(1, 60))).tolist()
            known = named(ids)
            blocks = allocator.hit(known[: (len(ids) - 1) // SIZE])
            assert allocator.room(known, blocks, blocks * SIZE, 0)
            holding, changes = allocator.enter(known, blocks)
            tables = [{column: page for g, column, page in changes if g == i} for i in range(3)]
            alive.append((ids, known, holding, tables, [blocks * SIZE]))
        if not alive:
            continue
        ids, known, holding, tables, at = alive[rng.integers(len(alive))]
        begin, end = at[0], min(len(ids), at[0] + int(rng.integers(1, 9)))
        changes = allocator.extend(holding, begin, end) if end > begin else None
        for g, column, page in changes or ():
            tables[g][column] = page
        if changes is None:  # at its end, or no room
            alive = [one for one in alive if one[2] is not holding]
            allocator.leave(holding)
        else:
            for i, group in enumerate(groups):
                for p in range(begin, end):
                    page = tables[i][p // SIZE % group.ring]
                    written[i][page] = ids[: p + 1]
                first = 0 if group.window is None else max(0, begin - group.window + 1)
                for p in range(first, end):  # what the tokens of this step look back on
                    page = tables[i][p // SIZE % group.ring]
                    assert written[i][page] == ids[: len(written[i][page])]
                    assert p // SIZE * SIZE < len(written[i][page]) <= p // SIZE * SIZE + SIZE
            at[0] = end
            allocator.name(holding, known, end // SIZE)
        allocator.check([one[2] for one in alive])
    for one in alive:
        allocator.leave(one[2])
    assert all(pool.free == pool.size for pool in allocator.pools)


def test_nothing_is_taken_where_one_group_is_short():
    allocator = Allocator(SIZE, [Group(8, 16), Group(2, 16)])
    holding, _ = allocator.enter([], 0)
    assert allocator.extend(holding, 0, 9) is None
    assert [pool.free for pool in allocator.pools] == [8, 2]
    assert allocator.most() == 8
    assert allocator.extend(holding, 0, 8) == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]


def test_a_ring_with_sinks_stays_where_it_is_and_is_not_shared():
    allocator = Allocator(SIZE, [Group(3, 3, window=6, fixed=True)])
    holding, _ = allocator.enter([], 0)
    assert len(allocator.extend(holding, 0, 12)) == 3
    assert allocator.extend(holding, 12, 50) == []
    allocator.name(holding, named(list(range(12))), 3)
    assert allocator.hit(named(list(range(12)))) == 0


@pytest.mark.parametrize("size", [0, -1])
def test_a_page_has_a_size(size):
    with pytest.raises(ValueError, match="page_size"):
        Allocator(size, [Group(1, 1)])
