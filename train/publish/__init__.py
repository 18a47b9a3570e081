"""Figures and model cards: what an evaluation found, put where people look."""
