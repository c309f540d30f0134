"""The policy server's parts: routes, guards, queue, sessions and metrics."""
