"""The bench compares variants that compute the same thing."""

from __future__ import annotations

import torch

from lpds.bench import _PlainDecoder, bench_learner, bench_table, iteration_flops, make_decoder


def test_the_plain_decoder_and_the_folded_one_are_one_function():
    generator = torch.Generator().manual_seed(0)
    obs, w = torch.rand(64, 11, generator=generator), torch.randn(64, 4, 3, generator=generator)
    plain, folded = make_decoder(_PlainDecoder), make_decoder()
    assert plain.fingerprint == folded.fingerprint
    torch.testing.assert_close(plain(obs, w), folded(obs, w), atol=2e-6, rtol=0)
    torch.testing.assert_close(make_decoder(bf16=True)(obs, w), folded(obs, w), atol=2e-2, rtol=0)


def test_decoding_is_most_of_an_iteration_at_width_128():
    # decoding is most of an iteration with fresh noise: without it (kept, next-action decoding only) about half remains
    assert 0.4 < iteration_flops(128, "folded_kept_pairs") / iteration_flops(128, "folded") < 0.7
    # nothing but the decision that came in is decoded: what is left are the critics, a quarter of it
    assert 0.2 < iteration_flops(128, "folded_kept_targets") / iteration_flops(128, "folded") < 0.3
    assert iteration_flops(128, "plain") > 1.7 * iteration_flops(128, "folded")


def test_the_bench_has_the_keys_that_others_read():
    result = bench_learner(rounds=1, iterations={128: 1})
    figures = result["3x128"]
    ratios = ["ratio_folded", "ratio_folded_kept_pairs", "ratio_folded_kept_targets", "ratio_bf16"]
    assert {"plain_ms", "fraction_of_matmul_rate", *ratios} <= figures.keys()
    assert all(figures[key] > 0 for key in ratios)
    assert "critics 3x128" in bench_table(result)
