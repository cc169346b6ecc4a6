"""The verb build: make customized bricks."""
