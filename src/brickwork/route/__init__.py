"""The verb route: find and choose the bricks that an instruction needs."""
