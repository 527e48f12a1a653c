"""Keyed randomness is frozen: other values would give every artefact other bytes."""

from __future__ import annotations

import torch

from stillroom.rng import global_rng, key_seed, rng

GOLDEN = {
    (0,): 7520536977032167579,
    (0, "a", 1): 7376671040889259502,
    (0, 1, "a"): 5885553487658909177,
    (1, "a", 1): 8950997273148624391,
    (18446744073709551616, "student"): 6471721792062784365,
    (0, "augment", 10, 3): 3173856892374877891,
}
RAND = [0.63129091, 0.47041214, 0.81964409]
PERM = [2, 7, 0, 3, 6, 5, 1, 4]
NORM = [0.33352712, 0.4515141]


def test_seeds_are_frozen() -> None:
    assert {key: key_seed(*key) for key in GOLDEN} == GOLDEN


def test_first_draws_are_frozen() -> None:
    torch.testing.assert_close(torch.rand(3, generator=rng(0, "start", 3)), torch.tensor(RAND))
    assert torch.randperm(8, generator=rng(7, "real", 2, 0)).tolist() == PERM
    torch.testing.assert_close(torch.randn(2, generator=rng(0, "noise", 1)), torch.tensor(NORM))


def test_order_type_and_grouping_of_keys_matter() -> None:
    keys = [(0, "a", 1), (0, 1, "a"), (1, "a", 0), (0, "a", "1"), (0, "a1"), (0, "a,1"), (0,)]
    keys += [(0, 'a",1'), (0, "a", 1, ""), (0, "é"), (0, "e\u0301")]
    assert len({key_seed(*key) for key in keys}) == len(keys)


def test_seed_fits_a_generator() -> None:
    for seed in (0, 1, 2**63, 2**200, -1):
        assert 0 <= key_seed(seed, "x") < 2**63
        rng(seed, "x")


def test_draws_do_not_depend_on_draws_before_them() -> None:
    one = torch.rand(4, generator=rng(3, "step", 5))
    torch.rand(100, generator=rng(3, "step", 4))
    assert torch.equal(one, torch.rand(4, generator=rng(3, "step", 5)))


def test_global_generator_is_keyed_and_put_back() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with global_rng(0, "net", 1):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with global_rng(0, "net", 1):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(inside, torch.rand(3, generator=rng(0, "net", 1)))
