"""Everything this package raises on purpose.

EngineError
├── BadRequestError         the client's request names something that cannot be served (HTTP 400)
├── OverloadedError         no pages or no place in the queue in time (HTTP 503)
├── NotServingError         the model is loading or the agent is away (HTTP 503)
├── RequestAbandonedError   the client has gone
├── UnknownModelError       no tiny model of that name and no such folder
└── UnsupportedCacheError   the model's cache holds a layer class nobody described
"""


class EngineError(Exception):
    pass


class BadRequestError(EngineError):
    """Names the field, what it held and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:77]}..."
        super().__init__(f"{field} is {shown}; {allowed}")
        self.field = field


class OverloadedError(EngineError):
    pass


class NotServingError(EngineError):
    pass


class RequestAbandonedError(EngineError):
    pass


class UnknownModelError(EngineError):
    pass


class UnsupportedCacheError(EngineError):
    pass
