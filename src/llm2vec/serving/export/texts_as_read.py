"""Texts as a tokenizer reads them: prompt, template and text in one string, and what is not pooled.

Libraries that open an export know neither our prompts nor our templates, so the caller joins the
string.
"""

from collections.abc import Sequence

from llm2vec.encoder.settings import Settings


def texts_as_read(
    texts: Sequence[str], settings: Settings, *, prompt: str | None = None
) -> list[tuple[str, int]]:
    """Join each text with what comes around it.

    Args:
        texts: Texts to encode.
        settings: Settings of the encoder.
        prompt: Prompt before each text; its separator is added.

    Returns:
        The joined string, and how many characters at its start belong to prompt and template.

    Example:
        >>> texts_as_read(["A text."], Settings(), prompt="Summarise:")
        [('Summarise: A text.', 11)]
    """
    before, _, after = (settings.template or "{text}").partition("{text}")
    start = before + settings.before_text(prompt)
    wrapped = settings.template is not None
    plain = [text.rstrip() if wrapped else text for text in texts]
    return [(start + text + after, len(start)) for text in plain]
