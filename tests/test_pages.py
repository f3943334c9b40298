"""Pages are conserved whatever happens."""

import pytest

from jaxinfer.pages import PagePool


def test_random_traffic_conserves_pages(rng):
    pool, held = PagePool(13), []
    for _ in range(500):
        if held and rng.random() < 0.5:
            pool.release(held.pop(rng.integers(len(held))))
        else:
            count = int(rng.integers(0, 6))
            if count <= pool.free:
                held.append(pool.acquire(count))
            else:
                with pytest.raises(MemoryError, match=f"{count} free pages"):
                    pool.acquire(count)
        owned = [page for pages in held for page in pages]
        assert len(set(owned)) == len(owned)
        assert pool.free == 13 - len(owned)


def test_only_owned_pages_are_released():
    pool = PagePool(4)
    pages = pool.acquire(2)
    with pytest.raises(ValueError, match="owned"):
        pool.release((3, pages[0]) if 3 not in pages else (0, pages[0]))
    with pytest.raises(ValueError, match="owned"):
        pool.release((pages[0], pages[0]))
    assert pool.free == 2


def test_a_pool_needs_pages():
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)
