"""What a brick is: data only; no model, no store."""
