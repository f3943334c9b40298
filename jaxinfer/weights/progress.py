"""How far a load has come: a bar on stderr where that is a terminal, and a caller's function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar


class Progress:
    """show: whether to draw a bar. report(bytes done, bytes in all): called after every step, if
    given.
    """

    def __init__(self, show: bool = False, report: Callable[[int, int], None] | None = None):
        self._show, self._report = show, report
        self._bar = self._task = None
        self._done = self._total = 0

    @contextmanager
    def over(self, total: int) -> Iterator[None]:
        """Count `total` bytes for the length of the block; the bar vanishes at its end."""
        self._done, self._total = 0, total
        console = Console(stderr=True)
        if not (self._show and console.is_terminal):
            yield
            return
        columns = (
            TextColumn("loading weights"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console, transient=True) as self._bar:
            self._task = self._bar.add_task("", total=total)
            yield
        self._bar = None

    def advance(self, count: int) -> None:
        """`count` more bytes are in place."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)
        if self._report is not None:
            self._report(self._done, self._total)
