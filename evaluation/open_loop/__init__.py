"""Open-loop evaluation (`syvla-openloop`): predicted against recorded action chunks, without a robot or a simulator.

`prediction` asks the policy, `baselines` says what would need no learning, `errors` compares both with the recording,
`verdict` says in words what that means, `page` and `figures` show it, and `command` is the command line.
"""
