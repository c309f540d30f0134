"""What passes between a server and a policy: requests, action chunks and how rollouts are sampled."""
