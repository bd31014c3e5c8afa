"""Views folded from the log, and how to ask them."""
