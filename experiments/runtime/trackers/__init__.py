"""Trackers: observers that show a run in TensorBoard, W&B, MLflow or Trackio."""
