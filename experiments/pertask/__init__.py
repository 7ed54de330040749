"""Driver of tasks from tables: every user, assay, student or segment is a task."""
