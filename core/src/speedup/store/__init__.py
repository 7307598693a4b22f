"""Small models as files: ``record`` notes what changed, ``save`` writes it, ``load`` replays it onto a fresh model."""
