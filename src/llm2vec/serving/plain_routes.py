"""Routes that encode nothing: the page, `/health`, `/metrics`."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from llm2vec.serving.metrics import Metrics
from llm2vec.serving.page import page
from llm2vec.serving.queue import Queue
from llm2vec.serving.refusals import Refusal
from llm2vec.serving.tei_routes import TeiError


class PlainRoutes:
    """The page, health and metrics of a server."""

    def __init__(self, queue: Queue, metrics: Metrics) -> None:
        self._queue = queue
        self._metrics = metrics

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["Server"])
        router.add_api_route(
            "/", self.page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False
        )
        router.add_api_route(
            "/health",
            self.health,
            methods=["GET"],
            response_class=Response,
            responses={
                200: {"description": "Every model answers"},
                503: {"model": TeiError, "description": "Stopping, or a model does not work"},
            },
        )
        router.add_api_route(
            "/metrics",
            self.metrics,
            methods=["GET"],
            response_class=PlainTextResponse,
            responses={401: {"model": TeiError, "description": "The key is missing or wrong"}},
        )
        return router

    async def page(self) -> HTMLResponse:
        """Show a page to try the encoders."""
        return page()

    async def health(self) -> Response:
        """Report whether requests are answered."""
        problem = self._queue.problem()
        if problem is not None:
            raise Refusal("unhealthy", problem, retry_after_s=5)
        return Response()

    async def metrics(self) -> Response:
        """Report counters in Prometheus' text format."""
        return PlainTextResponse(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)
