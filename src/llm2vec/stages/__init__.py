"""Training stages: each takes a model in memory and returns it trained; `convert` makes folders of them."""
