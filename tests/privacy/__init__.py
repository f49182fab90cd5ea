"""What a task says, what a model says and what opens an engine: shown nowhere."""
