"""Everything that a card or a Jetson can show about engines, in one document that can be sent back."""
