"""Making masks that can be removed: a criterion scores channels, `prune_masks` chooses which go.

`criterion` is what a plugin implements, `scene` what it is given; `choose` turns scores into channels, `target` finds
the sparsity that meets a target, and `front` is the way in.
"""
