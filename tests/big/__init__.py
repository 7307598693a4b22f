"""Models that are planned without their weights."""
