"""Cloze: of two endings of a story, which does the model find likelier?"""
