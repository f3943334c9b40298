"""Pictures of comparisons: labels that can be read, however candidates crowd."""

import numpy as np
import pytest
from matplotlib.text import Text

from jaxinfer.quality import plot


def described(rng, count: int) -> dict:
    """Candidates of which most are nearly alike."""
    rows = []
    for i in range(count):
        near = 1 + 1e-4 * rng.normal()
        far = 10.0 ** rng.uniform(-3, 1) if i % 5 == 0 else 1.0
        rows.append(
            {
                "candidate": {"setting": f"candidate {i}", "weight_bytes": int(2e7 * near)},
                "kl": {"mean": 0.004 * near * far},
                "perplexity_rise": 0.003 * near * far * rng.choice([-1, 1]),
                "perplexity_rise_error": 0.001,
            }
        )
    reference = {"setting": "bfloat16", "weight_bytes": 4e7}
    return {"candidates": rows, "reference": reference, "tokens": 1000}


@pytest.mark.parametrize("count", [1, 7, 40])
def test_labels_do_not_overlap_and_stay_in_the_picture(rng, count):
    figure = plot.sizes_figure(described(rng, count))
    figure.draw_without_rendering()
    whole = figure.bbox
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their lines
        assert [text.get_text() for text in axes.texts] == [f"candidate {i}" for i in range(count)]
        for i, box in enumerate(boxes):
            assert whole.x0 <= box.x0 < box.x1 <= whole.x1
            assert whole.y0 <= box.y0 < box.y1 <= whole.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("count", [1, 5, 20])
def test_heights_lie_apart_in_their_order_and_no_farther_than_needed(rng, count):
    wanted, gap = rng.uniform(size=count), 1 / 20
    found = plot.apart(wanted, gap)
    order = np.argsort(wanted)
    assert (np.diff(found[order]) > gap * 0.999).all()
    assert (found > -1e-9).all()
    assert (found < 1 + 1e-9).all()
    np.testing.assert_allclose(plot.apart([0.1, 0.5, 0.9], gap), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(plot.apart([0.51, 0.49, 0.5], gap), [0.55, 0.45, 0.5])
    np.testing.assert_allclose(plot.apart([1.0, 0.99, 0.0], gap), [1.0, 0.95, 0.0])
