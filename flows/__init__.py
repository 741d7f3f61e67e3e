"""Stories: flows that read top to bottom, and the command line."""
