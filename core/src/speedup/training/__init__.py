"""Going on with training: gradients, optimizers and averaged copies follow the weights. ``follow`` has the whole."""
