"""Saved models that must stay readable. ``python -m tests.saved.net DIR`` wrote ``version1``."""
