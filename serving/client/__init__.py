"""The robot's side: clients of the policy server and the execution of chunks."""
