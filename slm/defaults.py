"""How a continuation is drawn where nobody says otherwise: the page, the command line, Python and the evaluation."""

TEMPERATURE = 0.7
TOP_P = 0.9
MAX_SECONDS = 12.0
"""s of one continuation."""
