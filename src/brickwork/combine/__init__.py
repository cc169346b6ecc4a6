"""The verb *combine*: several models or bricks become one."""
