"""The training stages: each takes a model in memory and returns it trained."""
