"""Which sequence holds which pages of the cache, and which pages can be found again.

`pool` counts the pages of one group of layers, `names` says what a page holds, `allocator` gives a
sequence what it needs in every group, `swap` keeps room on the host for what gave way. None of them
knows arrays, requests or plans.
"""

from jaxinfer.pages.allocator import Allocator as Allocator
from jaxinfer.pages.allocator import Change as Change
from jaxinfer.pages.allocator import Group as Group
from jaxinfer.pages.holding import Holding as Holding
from jaxinfer.pages.holding import Parked as Parked
from jaxinfer.pages.pool import PagePool as PagePool
from jaxinfer.pages.swap import Move as Move
from jaxinfer.pages.swap import SwapSpace as SwapSpace
