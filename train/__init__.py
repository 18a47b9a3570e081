"""Everything that produces and measures a bundle: stories, speech, corpus, training, evaluation, recipes."""
