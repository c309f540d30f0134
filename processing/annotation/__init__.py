"""Sub-tasks for a dataset: marked by a person on a local page (`syvla-annotate`), and a look at the data (`syvla-look`)."""
