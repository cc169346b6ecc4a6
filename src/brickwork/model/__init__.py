"""What bricks plug into: the room that knows the module paths of model families."""
