"""What a user does with the operator, as code: the demo, and what the cluster tests share with it."""
