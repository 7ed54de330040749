"""Transfer baselines: encoders pre-trained on all training classes."""
