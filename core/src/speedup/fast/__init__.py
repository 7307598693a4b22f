"""What makes a small model faster than its sizes do, where the user asks for it: other tensors, the same answers."""
