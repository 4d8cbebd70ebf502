"""The network that is fine-tuned: a body, and a linear layer over what is read of its states.

It knows neither words nor labels: a batch says which states are read.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2vec.encoder.batching import flatten
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.pooling import pool
from llm2vec.recipe.knobs import Pooling


@dataclass(frozen=True)
class Reading:
    """What the linear layer reads of a batch.

    Attributes:
        pooling: How the states of a text become one vector; None reads single states, those of
            words.
    """

    pooling: Pooling | None = None

    def vectors(self, states_ND: Tensor, lengths_B: Tensor, read: Tensor) -> Tensor:
        """One vector for each word or text: vectors_RD in float32.

        Args:
            states_ND: States of all tokens of a batch, text after text.
            lengths_B: Number of tokens of each text.
            read: The indices of the states that are read (words), or for each text the first token
                that is pooled and one past the last: (B, 2).
        """
        if self.pooling is None:
            return states_ND[read].float()
        ranges_B3 = torch.cat([lengths_B[:, None], read], dim=1)
        return pool(states_ND, ranges_B3, pooling=self.pooling)


class LabelNetwork(nn.Module):
    """A body with a linear layer; its output is one row of logits for each word or text.

    Args:
        body: The transformer, with or without adapters.
        labels: Number of labels.
        reading: What is read of the states.
        bias: Whether the linear layer has a bias. transformers' sequence classifiers have none.
        dropout: Probability of dropout before the linear layer.
    """

    def __init__(
        self,
        body: PreTrainedModel | PeftModel,
        labels: int,
        *,
        reading: Reading,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.body = body
        self.config = body.config
        self.reading = reading
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(states_width(body), labels, bias=bias, device=body.device)
        nn.init.normal_(self.linear.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.linear.bias)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.linear.weight.device

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the body can recompute its states in the backward pass."""
        return bool(self.body.supports_gradient_checkpointing)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the body's states in the backward pass."""
        self.body.gradient_checkpointing_enable(**options)

    def forward(self, *, lengths_B: Tensor, read: Tensor, **inputs: Any) -> Tensor:
        """Logits of everything that is read: logits_RC in float32."""
        states_BTD = self.body(**inputs).last_hidden_state
        states_ND = flatten(states_BTD, lengths_B.tolist())
        vectors_RD = self.reading.vectors(states_ND, lengths_B, read)
        with torch.autocast(vectors_RD.device.type, enabled=False):
            logits_RC: Tensor = self.linear(self.dropout(vectors_RD))
        return logits_RC
