"""A configured model: bricks attached to a base, and how it runs."""
