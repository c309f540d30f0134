"""MetaWorld: tasks, environment and scripted experts."""
