"""Checks of encoders for programs that pool every token of a text."""

from collections.abc import Collection

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.tokenization import added_tokens
from llm2vec.errors import ModelError
from llm2vec.recipe.knobs import Pooling


def refuse_other_pooling(encoder: Encoder, *, reader: str, poolings: Collection[Pooling]) -> None:
    """Refuse an encoder that another program would pool in another way.

    Args:
        encoder: Encoder to export.
        reader: Name of the program, which pools every token.
        poolings: Poolings of the program.

    Raises:
        ModelError: The program does not have the pooling, or the encoder leaves special tokens out
            of its mean.
    """
    settings = encoder.settings
    if settings.pooling not in poolings:
        raise ModelError(f"{reader} has no {settings.pooling}; use --to onnx")
    added = added_tokens(encoder.tokenizer)
    if settings.pooling == "mean" and added and not settings.pools_special:
        token = encoder.tokenizer.convert_ids_to_tokens(added[0])
        raise ModelError(
            f"{reader} pools every token, and this encoder leaves out {token}, which its tokenizer "
            "puts around each text; the vectors would differ. Use --to onnx, or an encoder that "
            'pools special tokens (`"pool_special": true` in its llm2vec_config.json, which is '
            "another encoder: measure it)"
        )
