"""The verb grow: more capacity and new abilities, without forgetting."""
