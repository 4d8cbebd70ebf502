"""The training stages, in the order in which they run. A new stage is a new value in the tuple."""

from typing import Any

from llm2vec.training.distill import DISTILL
from llm2vec.training.mntp import MNTP
from llm2vec.training.simcse import SIMCSE
from llm2vec.training.stage import Stage
from llm2vec.training.supervised import SUPERVISED

STAGES: tuple[Stage[Any], ...] = (MNTP, SIMCSE, SUPERVISED, DISTILL)
