"""Structured logs on standard error, one JSON object a line, without texts, keys or queries.

An exception is logged by its type and its traceback, since its message may repeat a text.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = "llm2vec.serving"

_FACTS = "facts"


def log(
    event: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any
) -> None:
    """Log an event with its facts, and an error without its message."""
    logging.getLogger(LOGGER).log(level, event, exc_info=error, extra={_FACTS: facts})


class JsonLines(logging.Formatter):
    """A formatter that writes a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **getattr(record, _FACTS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            line["raised"] = [
                f"{frame.filename}:{frame.lineno}"
                for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line, ensure_ascii=False)


def set_up() -> None:
    """Write this server's events and uvicorn's warnings to standard error, and nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
