"""LIBERO: suites, environment and scripted experts."""
