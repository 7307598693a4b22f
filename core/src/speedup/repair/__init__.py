"""Repair: sizes that the user's code holds follow the plan. ``mend`` has the loop."""
