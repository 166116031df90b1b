"""TInR-U: tool-internalised reasoning (arXiv 2604.10788, ACL 2026).

Tools live in the weights: one vocabulary entry a tool, aligned with its document in both directions. At use time the
model selects by token, is handed the documents of exactly those tools, and calls: the prompt does not grow with the
catalogue.

    paper                                                          here
    tool tokens, rows from the name's sub-tokens                   tokens.grow_vocabulary, tokens.add_lora
    L_mem = −Σ log P(I(t) | D(t))                                  corpus.memorise
    L_rec = −Σ_t Σ_s log P(D(t)_s | I(t), D(t)_<s)                 corpus.recall
    L_use = −Σ log P(C | q)                                        corpus.use
    L = L_mem + α·L_rec + β·L_use                                  corpus.loss_weights (per-example means)
    (ours) document-derived views in the chat format               corpus.view, corpus.pseudo_call
    phase 2: 10 candidates, teacher, rejection, name → token       think.warm_up
    phase 3: R = R_format + R_correct                              tirkit.scoring.reward
    two-step inference, allow-list                                 tirkit.rollout.loop, tirkit.rollout.allow
    (ours) memorise and recall accuracy after every phase          probe.probe

Assumption: documents are worth a few hundred training tokens each, and instructions resemble what documents say.
Degenerate cases: a tool without a description is known by its name alone; a schema no random value fits gives a view
instead of a pseudo call; a task without gold calls is a plain reply.
Differences to the release: output rows of untied models are initialised too, vocabularies never shrink, trained rows
are never initialised again, losses are per-example means, arguments are checked in rejection sampling.
"""
