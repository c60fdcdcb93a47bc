"""The supervisor: one per machine. It takes events, runs them in environments, and answers."""
