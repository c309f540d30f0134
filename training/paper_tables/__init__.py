"""`syvla-tables`: the runs behind the paper's tables."""
