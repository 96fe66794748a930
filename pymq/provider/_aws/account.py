"""One account and region of AWS: its clients, who we are there, and its errors as ours."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache
from typing import Any, NamedTuple

from pymq.exceptions import ConnectionLost, LeaseLost, ProviderError, QueueNotFound

LONGEST_POLL = 20
"""Seconds; the most that SQS allows."""

_GONE = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NotFound", "NotFoundException", "ResourceNotFound"}
_SPENT = {"ReceiptHandleIsInvalid", "MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight"}
_THROTTLED_TOO = {"Throttled", "KmsThrottled", "KMSThrottling", "KMSThrottlingException"}
"""SNS's word, and those for keys of the user's: botocore does not know that such a call may be taken later."""
_THROTTLED = _THROTTLED_TOO | {
    *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"),
    *("RequestLimitExceeded", "TooManyRequestsException"),
}
ATTEMPTS = 6
_DENIED = {"AccessDenied", "AccessDeniedException", "AuthorizationError"}
_UNKNOWN = {"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidSignatureException"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}
DELETED_RECENTLY = {"AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently"}
EXISTS_OTHERWISE = {"QueueAlreadyExists", "QueueNameExists"}
"""What CreateQueue says of a queue whose attributes, or tags, are others than those that it was asked for."""


class AwsError(ProviderError):
    """AWS refused; `code` is its word for why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} ({code})" if code else text)
        self.code = code

    @property
    def throttled(self) -> bool:
        """Whether the same call may be taken later."""
        return self.code in _THROTTLED


class Clock:
    """AWS's, which all participants share: our own as it was at first, corrected by the dates of AWS's answers.

    It goes on by the monotonic clock. So nobody is taken for dead, and no deadline is missed, because somebody sets a machine's
    clock; and what a suspended machine has slept through is known after the next answer.
    """

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        """In seconds."""
        return time.monotonic() + self._ahead

    def learn(self, answer: dict[str, Any], begun: float) -> None:
        """From the answer to a call that was begun then, by the monotonic clock, and has ended now.

        It was dated in between, in whole seconds: so each answer tells two bounds, and many of them the time to a few milliseconds.
        """
        from email.utils import mktime_tz, parsedate_tz

        date = parsedate_tz(answer["ResponseMetadata"]["HTTPHeaders"].get("date"))
        if date is not None:
            written = mktime_tz(date)
            self._ahead = min(max(self._ahead, written - time.monotonic()), written + 1 - begun)


class Identity(NamedTuple):
    """What the names of an account's resources begin with."""

    partition: str
    account: str
    region: str

    def arn(self, service: str, name: str) -> str:
        """The full name of a queue or topic."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{name}"


class Account:
    """Calls AWS. Throttled calls, and those that got no answer, are made again by botocore, after 1, 2, 4 … s with jitter.

    Safe in all threads. The clients are shared by the buses of the process that were given the same, and found the same environment;
    they are made anew after a fork. Raises QueueNotFound, LeaseLost, ConnectionLost (not known whether it took place), AwsError.
    """

    def __init__(self, session: Any, region: str | None, endpoint_url: str | None, emulated: bool) -> None:
        # not `items()`, which fails where another thread takes a variable away
        said = frozenset((name, os.environ.get(name, "")) for name in os.environ if name.startswith("AWS_"))
        self._clients = _clients(os.getpid(), said, session, region, endpoint_url, emulated)
        self._sqs, self._sns = self._clients.sqs, self._clients.sns
        self.identity: Identity = _identity(self._clients)

    def hurry(self) -> None:
        """From now on each call is made once, and waited for 3 s: the process wants to end."""
        self._sqs, self._sns = self._clients.hasty_sqs, self._clients.hasty_sns

    def sqs(self, verb: str, **parameters: Any) -> dict[str, Any]:
        """One call to SQS."""
        return self._call(self._sqs, verb, parameters)

    def poll(self, **parameters: Any) -> list[dict[str, Any]]:
        """What `ReceiveMessage` returns, which may take `WaitTimeSeconds`."""
        client = self._clients.polls if parameters["WaitTimeSeconds"] > 1 else self._sqs  # which is not waited for longer than need be
        messages: list[dict[str, Any]] = self._call(client, "receive_message", parameters).get("Messages", [])
        return messages

    def sns(self, verb: str, **parameters: Any) -> dict[str, Any]:
        """One call to SNS."""
        return self._call(self._sns, verb, parameters)

    def ask_sns(self, verb: str, **parameters: Any) -> dict[str, Any]:
        """One call to SNS that is not made again where it was throttled."""
        return self._call(self._clients.hasty_sns, verb, parameters)

    def now(self) -> float:
        """The time of AWS's clock."""
        return self._clients.clock.now()

    def _call(self, client: Any, verb: str, parameters: dict[str, Any]) -> dict[str, Any]:
        return call(client, verb, parameters, self._clients.clock)


class _Clients(NamedTuple):
    clock: Clock
    sqs: Any
    polls: Any
    sns: Any
    sts: Any
    hasty_sqs: Any
    hasty_sns: Any


@lru_cache(maxsize=4)
def _clients(
    pid: int, said: frozenset[tuple[str, str]], session: Any, region: str | None, endpoint_url: str | None, emulated: bool
) -> _Clients:
    """Cached, since making one takes 20 ms and the first of a session 170; by process, since sockets do not survive a fork; and by
    what the environment `said`, since that is what boto3 asks. Few: a session stays in memory with them.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ProviderError("the provider aws needs boto3; in a checkout of pymq: pip install -e '.[aws]'") from error
    try:
        session = session or boto3.Session()
    except BotoCoreError as error:  # a profile, or a file of them, that is not right
        raise translated(error) from error
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    usual = Config(retries=retries, max_pool_connections=50, connect_timeout=5, read_timeout=15)
    patient = usual.merge(Config(max_pool_connections=100, read_timeout=LONGEST_POLL + 15))
    hasty = Config(retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=1, read_timeout=3, max_pool_connections=50)
    options: dict[str, Any] = {"region_name": region, "endpoint_url": endpoint_url}
    try:
        if emulated and session.get_credentials() is None:
            options |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        wanted = (("sqs", usual), ("sqs", patient), ("sns", usual), ("sts", usual), ("sqs", hasty), ("sns", hasty))
        clients = _Clients(Clock(), *(session.client(name, config=config, **options) for name, config in wanted))
    except (BotoCoreError, ValueError) as error:
        raise translated(error) from error
    for client in (clients.sqs, clients.polls, clients.sns):
        client.meta.events.register(f"needs-retry.{client.meta.service_model.service_name}", _again)
    return clients


def _again(attempts: int, response: tuple[Any, dict[str, Any]] | None, **_: Any) -> float | None:
    """In how many seconds to make a call again that was throttled in words that botocore does not know."""
    code = "" if response is None else response[1].get("Error", {}).get("Code", "")
    return random.uniform(0, 2.0 ** (attempts - 1)) if code in _THROTTLED_TOO and attempts < ATTEMPTS else None


@lru_cache(maxsize=4)
def _identity(clients: _Clients) -> Identity:
    answer = call(clients.sts, "get_caller_identity", {}, clients.clock)
    return Identity(answer["Arn"].split(":")[1], answer["Account"], clients.sqs.meta.region_name)


def call(client: Any, verb: str, parameters: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """One call, its errors as ours; the clock learns from the answer."""
    begun = time.monotonic()
    try:
        answer: dict[str, Any] = getattr(client, verb)(**parameters)
        clock.learn(answer, begun)
        return answer
    except Exception as error:
        raise translated(error) from error


def translated(error: Exception) -> Exception:
    """Our error for one of botocore's."""
    from botocore import exceptions as theirs
    from botocore.parsers import ResponseParserError

    if isinstance(error, theirs.ClientError):
        found = error.response.get("Error", {})
        return refusal(str(found.get("Code", "")), str(error))
    if isinstance(error, theirs.NoRegionError):
        return ProviderError("AWS: no region; give AwsConfig(region=...), or set AWS_DEFAULT_REGION")
    if isinstance(error, theirs.NoCredentialsError | theirs.PartialCredentialsError):
        return ProviderError("AWS: no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give a session")
    if isinstance(error, theirs.HTTPClientError | theirs.ConnectionError | ResponseParserError):
        return ConnectionLost(f"AWS did not answer; it is not known whether the call took place: {error}")
    return ProviderError(f"AWS: {error}")


def refusal(code: str, text: str) -> Exception:
    """Our error for one of AWS's codes.

    A receipt whose time is over is an InvalidParameterValue to SQS, as each other wrong parameter is: only the text tells which.
    """
    if code in _GONE:
        return QueueNotFound(text)
    if code in _SPENT or (code == "InvalidParameterValue" and "for parameter ReceiptHandle" in text):
        return LeaseLost(text)
    if code in _DENIED:
        return AwsError(code, f"{text}; `pymq aws policy` prints what must be allowed")
    if code in _UNKNOWN:
        return AwsError(code, f"{text}; the credentials are not right, or the clock of this machine is not")
    if code in _EXPIRED:
        return AwsError(code, f"{text}; the credentials are over: `pymq.init` with new ones, or let boto3 renew them")
    return AwsError(code, text)
