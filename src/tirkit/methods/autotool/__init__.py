"""AutoTool: think only where it pays (arXiv 2603.13348).

One policy answers easy problems without reasoning and reasons at length on hard ones. It chooses by its first token, a
mode tag, and can be forced either way. Plain GRPO on tool use unlearns to think; a warm-up on both modes, a reward that
makes thinking dearer, an entropy bonus for thoughts with a coefficient of its own, and refined data are to prevent it.

    paper                                                          here
    mode labels by pass@8 of two annotators                        label.attempt_both, Attempted.mode
    SFT on the mix of both modes                                   label.warmup_set, label.short_gold
    RL data by reward variance across rounds                       refine.refine
    +1, -1 | +0.5, -0.5 after a format gate (ours)                 tirkit.scoring.reward.ModeReward
    β_i = β_s m_i 1{H_i <= H_s} + β_l (1 - m_i) 1{H_i <= H_l}      decoupled.decoupled, decoupled.entropy_bonus
    β_l <- clamp(β_l - η (mean H_i - H_l), 0, β_max)               decoupled.EntropyControl.advance
    L = surrogate - 1/N Σ β_i H_i                                  tirkit.training.rl.RLTrainer
    auto, forced think, forced no-think                            tirkit.rollout.policy.RolloutRequest.mode
    think rate, tokens, accuracy by mode; ACU                      tirkit.evaluation.metrics
    (ours) floor on the entropy of the mode token                  decoupled.mode_floor
    (ours) thinking forced on some rollouts of a group             tirkit.training.rl.ModeGuard
    (ours) early warning of mode collapse                          diagnose, tirkit.training.callbacks.ModeWatch

Assumption: raising the entropy of thoughts keeps thinking alive. What is known against it: divided by their standard
deviation, easy groups push the mode token several times as hard as the reward says, and the published term reaches that
token only by the think rate over the length of a thought. tests/methods/test_autotool_decoupled.py has the numbers.
Degenerate cases: no long trajectory in a step leaves β_l as it is; a malformed one gets no bonus; a task that both
annotators fail is left to RL; two rounds have no detrended variance.
Differences to the paper: β_l stays in [0, β_max]; the format gate; the mode token is a vocabulary entry; the variance
is taken around a line. Values the paper does not give are marked *ours* where they stand.
"""
