"""A thousand random requests in a pool for two or three: every answer is the one given alone."""

from tests import tiny
from tests.engine import load


def test_random_load_changes_no_answer(rng, seed):
    config = tiny.config()
    params = tiny.params(config, seed)
    engine = load.make(params, config)
    compiled = engine.warm_up()
    apart = load.make(params, config, prefix_sharing=False, programs=engine._device.programs)
    answers = []
    left = load.play(engine, load.traffic(rng, 1000), lambda *pair: answers.append(pair))
    ties = 0
    for arrival, sequence in answers:
        found, right = sequence.tokens, load.alone(apart, arrival)
        if arrival.leaves is not None:
            right = right[: len(found)]  # it may have hung up
        differ = [i for i, pair in enumerate(zip(found, right, strict=False)) if len({*pair}) > 1]
        if differ:
            k = differ[0]
            assert load.nearly_tied(params, config, arrival, right[:k], found[k], right[k])
            ties += 1
        else:
            assert found == right, arrival
    stats = engine.stats
    assert len(answers) == 1000
    assert left > 20
    assert ties < 10
    assert stats.preemptions > 10
    assert stats.swaps_in > 5
    assert stats.swap_used == 0
    assert stats.prefix_tokens > stats.prompt_tokens / 20
    assert engine.compiled == compiled


def test_a_soak_tells_what_it_saw(seed):
    row = load.soak(40, seed)
    assert row["requests"] == 40
    assert row["recompiles"] == row["pages_used"] == 0
    assert len(row["resident_bytes"]) == 10
