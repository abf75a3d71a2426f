"""One line for every metric that a run writes."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "step": "Primitive environment steps so far, over all environments, warm-up included.",
    "wall_s": "Seconds since the run began, resumed parts added up.",
    "updates": "Gradient updates so far (one is a step of every network and of α).",
    "return_mean": "Mean undiscounted return of the last 20 training episodes.",
    "success": "Share of the last 20 training episodes that succeeded.",
    "delta_sq_mean": "Mean over the update batch of ‖Δ(s)‖², summed over the free latent coordinates; the budget δ bounds it.",
    "delta_sq_p95": "95th percentile over states of ‖Δ(s)‖²: how far single states go beyond the mean.",
    "kl_nats": "KL(N(Δ, k² I) ‖ N(0, I)) in nats: ½ E‖Δ‖², the price of the shift, and that of k < 1 (noise_scale).",
    "delta_sq_beyond": "Share of states whose own ‖Δ(s)‖² is above the budget of that moment, which bounds only their mean.",
    "w_autocorrelation": "Lag-1 correlation of w along the chunk, about zero: 0 under the prior, 1 for a repeated row.",
    "w_norm": "Mean norm of the latent w = k ε + Δ(s) that is decoded; k is noise_scale, 1 by default.",
    "alpha": "The Lagrange multiplier α of the trust region, in reward units per unit of ‖Δ‖².",
    "q_action": "Mean value that the action critic Q^A gives to the executed chunks, in reward units.",
    "q_latent": "Mean value that the latent critic Q^W gives to the steered latents, in reward units.",
    "td_loss": "Squared temporal-difference error of Q^A, summed over its heads, in squared reward units.",
    "distill_loss": "Squared error of Q^W against Q^A at the base noise, summed over heads, in squared reward units.",
    "distill_gap_base": "Mean of Q^W(s, ε) - Q^A(s, Φ(s, ε)): the latent critic's bias where it is trained.",
    "distill_gap_steered": "Mean of Q^W(s, w) - Q^A(s, Φ(s, w)): its bias at the steered latents, where the shift asks it.",
    "action_entropy": "k-NN entropy (k = 3) of the first action of a chunk at fixed states, in nats; only differences count.",
    "action_entropy_frozen": "The same of the frozen policy, at the same states under the same noises.",
    "success_ema": "Running mean of success over training episodes, with a memory of 20.",
    "q_scale": "Mean norm of the slope of Q^W in w, in reward units: the scale that α is kept in proportion to.",
    "env_steps_per_s": "Primitive steps per second since the row before, evaluations included.",
    "updates_per_s": "Updates per second since the row before.",
}
