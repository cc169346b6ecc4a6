"""What can be seen of a model and its bricks: losses, activations, scores."""
