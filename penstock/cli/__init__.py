"""The command line, and the roles put together from it."""
