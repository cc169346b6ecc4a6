"""Where bricks live: a catalog, content-addressed objects and their index; no neural code."""
