"""A text as a tokenizer reads it: prompt, template and text in one string, and how much of it is not pooled.

Libraries that open an export know neither our prompts nor our templates, so whoever calls them joins the string.
"""

from collections.abc import Sequence

from llm2vec.encoder.settings import Settings


def texts_as_read(
    texts: Sequence[str], settings: Settings, *, prompt: str | None = None
) -> list[tuple[str, int]]:
    """Each text's joined string, and how many characters at its start belong to prompt and template.

    Args:
        texts: What is to be encoded.
        settings: The encoder's.
        prompt: What is put before every text; its separator is added.

    Example:
        >>> texts_as_read(["A text."], Settings(), prompt="Summarise:")
        [('Summarise: A text.', 11)]
    """
    before, _, after = (settings.template or "{text}").partition("{text}")
    start = before + settings.before_text(prompt)
    wrapped = settings.template is not None
    plain = [text.rstrip() if wrapped else text for text in texts]
    return [(start + text + after, len(start)) for text in plain]
