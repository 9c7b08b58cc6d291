"""What goes wrong inside the gateway, and how FirecREST words it."""

from typing import Any

__all__ = ["GatewayError", "ValidationError"]


class GatewayError(Exception):
    """An answer that is not a success: raised anywhere, turned into FirecREST's error body in one place."""

    error_type = "error"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        caused_by: list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.caused_by = caused_by
        self.headers = headers or {}

    data: dict[str, Any] | None = None

    def body(self, user: str | None) -> dict[str, Any]:
        return {
            "errorType": self.error_type,
            "message": self.message,
            "causedBy": self.caused_by,
            "data": self.data,
            "user": user,
        }


class ValidationError(GatewayError):
    """A request that FirecREST's models refuse: 400, never 422."""

    error_type = "validation"

    def __init__(self, location: str, names: tuple[str, ...], text: str, kind: str, given: Any) -> None:
        detail = {"type": kind, "loc": (location, *names), "msg": text, "input": given}
        super().__init__(400, f"1 validation error:\n  {str(detail).lower()}")
        self.data = {"fields": [{"location": location, "name": names[0], "message": text}]}
