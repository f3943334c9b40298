"""Pages are conserved whatever happens, found by what they hold, and evicted longest kept first."""

import pytest

from jaxinfer.pages import PagePool


def test_random_traffic_conserves_pages(rng):
    """Beside a model of the pool that is a list of what was given back, and when."""
    pool, held, names, kept = PagePool(13), [], {}, []
    for move in range(2000):
        kind = rng.random()
        if held and kind < 0.4:
            pages = held.pop(rng.integers(len(held)))
            pool.release(pages)
            still = {page for others in held for page in others}
            kept += [page for page in pages if page not in still and page in names]
        elif held and kind < 0.6:
            page = held[-1][0] if held[-1] else None
            if page is not None and page not in names:
                names[page] = str(move).encode()
                pool.name(page, names[page])
        elif names and kind < 0.7:
            page = list(names)[rng.integers(len(names))]
            assert pool.find(names[page]) == page
            held.append(pool.acquire(0, [page]))
            kept = [other for other in kept if other != page]
        else:
            count = int(rng.integers(0, 6))
            free = pool.free
            if count > free:
                with pytest.raises(MemoryError, match=f"{count} free pages"):
                    pool.acquire(count)
            else:
                evicted = kept[: max(0, count - (free - len(kept)))]
                held.append(pool.acquire(count))
                assert set(evicted) <= set(held[-1])
                for page in evicted:
                    assert pool.find(names[page]) is None
                    del names[page]
                kept = kept[len(evicted) :]
        pool.audit()
        owned = {page for pages in held for page in pages}
        assert pool.free == 13 - len(owned)
        assert pool.kept == len(kept)
        assert all(pool.find(name) == page for page, name in names.items())


def test_a_page_is_held_until_its_last_holder_gives_it_back():
    pool = PagePool(2)
    (page,) = pool.acquire(1)
    pool.name(page, b"a")
    assert pool.acquire(0, [page]) == (page,)
    pool.release([page])
    assert pool.holders(page) == 1
    with pytest.raises(MemoryError, match="2 free pages"):
        pool.acquire(2)
    pool.release([page])
    assert pool.free == 2
    assert pool.find(b"a") == page


def test_a_found_page_is_not_also_a_fresh_one():
    pool = PagePool(3)
    (page,) = pool.acquire(1)
    pool.name(page, b"a")
    pool.release([page])
    with pytest.raises(MemoryError, match="3 free pages, has 2"):
        pool.acquire(3, [page])
    assert pool.free == 3
    assert sorted(pool.acquire(2, [page])) == [0, 1, 2]


def test_only_held_pages_are_released():
    pool = PagePool(4)
    pages = pool.acquire(2)
    with pytest.raises(ValueError, match="held"):
        pool.release((3, pages[0]) if 3 not in pages else (0, pages[0]))
    with pytest.raises(ValueError, match="held"):
        pool.release((pages[0], pages[0]))
    assert pool.free == 2


def test_what_is_forgotten_is_free_and_found_by_nobody():
    pool = PagePool(3)
    pages = pool.acquire(2)
    for page, name in zip(pages, (b"a", b"b"), strict=True):
        pool.name(page, name)
    pool.release(pages[:1])
    pool.forget()
    assert pool.find(b"a") is pool.find(b"b") is None
    assert (pool.free, pool.kept) == (2, 0)
    pool.release(pages[1:])
    assert (pool.free, pool.kept) == (3, 0)


def test_a_pool_needs_pages():
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)
