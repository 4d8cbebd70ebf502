"""`python -m llm2vec`, for `accelerate launch -m llm2vec`."""

from llm2vec.cli.main import main

main()
