"""Parallel children's stories made from a grammar, and the cloze items made from them."""
