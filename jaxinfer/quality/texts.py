"""The whole comparison: a text read by both sides in windows, and continued by both."""

from collections.abc import Callable, Iterable, Sequence

from jaxinfer.perplexity import Window, windows
from jaxinfer.quality import continuations, distances
from jaxinfer.quality.report import Report
from jaxinfer.quality.settings import Side


def compare(
    reference: Side,
    candidate: Side,
    ids: Sequence[int],
    *,
    size: int,
    window: int,
    stride: int,
    prompts: int = 16,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    reader: distances.Reader | None = None,
    track: Callable[[Sequence[Window]], Iterable[Window]] = iter,
) -> Report:
    """Compare two sides on the ids of a text.

    size: bytes of the text that the ids after the first one spell. window, stride: as
    `perplexity.windows` takes them. prompts, prompt_tokens, new_tokens: greedy continuations from
    even distances of the text (0 prompts: none). reader: the reference's, where it was read before
    (`distances.Kept`). track: sees each window pass. ValueError: a text too short, or windows and
    continuations beyond a model's positions.
    """
    most = min(side.model.config.max_position for side in (reference, candidate))
    if window > most:
        raise ValueError(f"the window needs to be at most {most} positions, got {window}")
    if prompts < 0 or prompt_tokens < 1 or new_tokens < 1:
        raise ValueError(
            "continuations need prompts >= 0, prompt_tokens >= 1 and new_tokens >= 1, got "
            f"{prompts=}, {prompt_tokens=}, {new_tokens=}"
        )
    if prompts and prompt_tokens + new_tokens > most:
        raise ValueError(
            f"prompt_tokens and new_tokens need to be at most {most} positions together, got "
            f"{prompt_tokens} and {new_tokens}"
        )
    ours = reader or distances.Reader(reference)
    same = candidate.model is reference.model
    theirs = ours if same else distances.Reader(candidate)
    parts = [
        distances.read(ours, theirs, ids[part.start : part.stop], part.first - part.start)
        for part in track(windows(len(ids), window, stride))
    ]
    starts = continuations.prompts_from(ids, prompts, prompt_tokens) if prompts else []
    continued = (
        continuations.continue_both(reference, candidate, starts, new_tokens)
        if starts
        else continuations.Continuations(new_tokens, ())
    )
    return Report(reference, candidate, distances.join(parts), size, window, stride, continued)
