"""Measuring a bundle offline: each evaluation states its protocol and prints its controls."""
