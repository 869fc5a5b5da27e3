"""Errors of the operator.

OperatorError
 +-- SettingsError          an environment variable of the operator is wrong
 +-- LeadershipLostError    another process may lead; this one must end
 +-- ApiError               a request to the API server ended without success
      +-- ApiConflictError       409: the precondition or the name was taken; observe again
      |    +-- AlreadyExistsError
      +-- ApiNotFoundError       404: the object, its namespace or its kind is gone
      |    +-- GangNotServedError   PodGroups are asked for, and the server has no such kind
      +-- ApiGoneError           410: the version to watch from, or the rest of a list, is too old
      +-- ApiForbiddenError      403: the service account lacks a verb
      +-- ApiRejectedError       400, 413, 422 and the like: the same request will never succeed
      +-- ApiUnavailableError    429, 5xx, broken connection, after all attempts
"""


class OperatorError(Exception):
    pass


class SettingsError(OperatorError):
    pass


class LeadershipLostError(OperatorError):
    pass


class ApiError(OperatorError):
    """`code` is the HTTP status (0 without an answer), `reason` the server's own CamelCase word."""

    def __init__(
        self, message: str, *, code: int, reason: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s


class ApiConflictError(ApiError):
    pass


class AlreadyExistsError(ApiConflictError):
    pass


class ApiNotFoundError(ApiError):
    pass


class GangNotServedError(ApiNotFoundError):
    pass


class ApiGoneError(ApiError):
    pass


class ApiForbiddenError(ApiError):
    pass


class ApiRejectedError(ApiError):
    pass


class ApiUnavailableError(ApiError):
    pass
