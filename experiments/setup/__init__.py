"""From settings to what is trained: data, learners, estimators."""
