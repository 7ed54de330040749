"""Tables, pictures and records of a run's results."""
