"""AutoTraj: repair and reward tool-use trajectories (arXiv 2601.23032).

Several attempts at each query are scored along several dimensions; good ones are kept, poor and wrong ones repaired
with real tools. Kept and repaired ones are the SFT set; (repaired, its own original) are preference pairs for a reward
model, whose score is a bonus on a right outcome in RL.

    paper                                                          here
    K candidates a query                                           synthesise.synthesise
    z, c, ℓ = exp(-2 (L/L* - 1)²), e, S = .4 c + .3 ℓ + .3 e       tirkit.scoring.quality.score_group
    keep rule, 0.90 / 0.86                                         tirkit.scoring.quality.decide
    LLM-as-Repairer, cases A and B, 0.86 / 0.80                    repair.Repairer, prompts.Templates
    (ours) rules before the repairer                               rules.rewrite
    (ours) caps on requests, tokens, money                         budget.Metered
    SFT set and preference set                                     pairs.build_datasets
    -log σ(r_chosen - r_rejected)                                  tirkit.losses.ranking, tirkit.training.reward_model
    R = -1 | R_out + λ 1[·] max(0, ŝ), ŝ = tanh((r - μ)/s)         tirkit.scoring.reward.TrajectoryReward

Assumption: what makes a trajectory poor shows in its words, and a repairer that sees it does better than a fresh try.
Degenerate cases: a lone attempt, or a query no attempt is right at, has no length score; a task without a target is
neither kept nor repaired; a repair equal to its original is rejected by its score.
Differences to the release: the repairer sees the attempt; tools run in both cases; an empty answer is wrong; tool turns
are no words of the policy and carry no loss; the reward model's head is saved and its input has the question in it.
"""
