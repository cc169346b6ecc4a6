"""Update: locate knowledge in a model, edit it, and take any edit back (SYSTEM.md 4.3)."""
