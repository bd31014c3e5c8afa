"""Putting jobs on the log, for producers and for the API alike."""
