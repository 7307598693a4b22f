"""The main job from end to end: train a network, make masks, speed it up, and measure what that brought.

Run it with `python -m demo` from the root of the repository.
"""
