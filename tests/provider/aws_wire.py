"""What goes over the wire between the aws provider and AWS: recorded, and answered otherwise where a test says so.

It sits where botocore sends, so that its retries, its parsing and our handling of both are the real ones.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import boto3
import botocore.loaders
import botocore.session
from aws_limits import check
from aws_server import emulator
from botocore.awsrequest import AWSResponse

from pymq.provider.aws import AwsConfig

LOADER = botocore.loaders.create_loader()
"""Reading the services' descriptions takes longer than most tests."""


class Call(NamedTuple):
    """One request: `CreateQueue` and its parameters, as AWS gets them."""

    name: str
    parameters: dict[str, Any]


Answer = Callable[[Call], tuple[int, dict[str, str], bytes] | None]


class Wire:
    """A boto3 session whose requests are in `calls`; `answers[name]` may answer in AWS's place, `changes[name]` change what it said."""

    def __init__(self) -> None:
        core = botocore.session.Session()
        core.register_component("data_loader", LOADER)
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.session = boto3.Session(region_name="us-east-1", botocore_session=core, **keys)
        self.calls: list[Call] = []
        self.refusals: list[AssertionError] = []
        """Requests that AWS's documents do not allow."""
        self.answers: dict[str, Answer] = {}
        self.changes: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._lock = threading.Lock()
        self.session.events.register("before-send.*.*", self._on_send)
        self.session.events.register("after-call.*.*", self._on_answer)

    def config(self, **options: Any) -> AwsConfig:
        """A config with a namespace of its own."""
        options = {"namespace": secrets.token_hex(4), "lease": 30.0, "refresh": 0.0, "poll": 1.0} | options
        return AwsConfig(self.session, endpoint_url=emulator(), **options)

    def _on_send(self, request: Any, **_: Any) -> AWSResponse | None:
        call = _parsed(request)
        try:
            check(*call)
        except AssertionError as error:
            self.refusals.append(error)
            raise
        with self._lock:
            self.calls.append(call)
            answer = self.answers.get(call.name)
        found = answer(call) if answer is not None else None
        return None if found is None else AWSResponse(request.url, found[0], found[1], _Raw(found[2]))

    def _on_answer(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        if (change := self.changes.get(model.name)) is not None:
            change(parsed)

    def named(self, name: str) -> list[Call]:
        """The requests of one kind."""
        return [call for call in self.calls if call.name == name]


def _parsed(request: Any) -> Call:
    body = request.body.decode() if isinstance(request.body, bytes) else request.body or ""
    target = request.headers.get("X-Amz-Target")
    if target is not None:
        return Call((target.decode() if isinstance(target, bytes) else target).split(".")[1], json.loads(body))
    parameters = dict(parse_qsl(body))
    return Call(parameters.pop("Action"), parameters)


class _Raw:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: Any) -> Any:
        yield self._content


def refused(code: str, status: int = 400, times: int = 1, text: str = "no") -> Answer:
    """SQS's or SNS's refusal, so many times; then AWS answers."""
    left = [times]

    def answer(call: Call) -> tuple[int, dict[str, str], bytes] | None:
        if not left[0]:
            return None
        left[0] -= 1
        if "Version" in call.parameters:  # in the protocol of SNS and STS
            body = f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error></ErrorResponse>"
            return status, {"content-type": "text/xml"}, body.encode()
        headers = {"content-type": "application/x-amz-json-1.0", "x-amzn-query-error": f"{code};Sender"}
        return status, headers, json.dumps({"__type": code, "message": text}).encode()

    return answer
