"""Tokens drawn with a seed depend on nothing but logits, settings and place in the answer."""

import torch

from disagg_engine.sampling import Sampling, pick_token

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0])


def draw(count=50, **settings):
    sampling = Sampling(seed=7, **settings)
    return [pick_token(LOGITS, sampling, position=i).id for i in range(count)]


def test_greedy_takes_the_largest():
    assert set(draw(temperature=0)) == {1}


def test_a_seed_repeats_and_positions_differ():
    assert draw() == draw()
    assert len(set(draw())) > 1


def test_top_p_keeps_the_first_at_least():
    assert set(draw(top_p=1e-6)) == {1}


def test_top_k_limits_the_choice():
    assert set(draw(top_k=2, temperature=5.0)) == {1, 2}


def test_without_a_seed_draws_differ():
    free = Sampling(temperature=50.0)
    drawn = [pick_token(LOGITS, free, position=0).id for _ in range(60)]
    assert len(set(drawn)) > 1


def test_the_logprob_is_of_the_model_not_of_the_temperature():
    token = pick_token(LOGITS, Sampling(temperature=0), position=0)
    assert abs(token.logprob - float(torch.log_softmax(LOGITS, 0)[1])) < 1e-6
